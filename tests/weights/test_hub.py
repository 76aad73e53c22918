"""Downloads from a real server that fails in every way: resumed, verified, shared between processes."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flaxzoo
from flaxzoo.weights import cache, download, hub
from flaxzoo.weights.cache import cache_dir, cache_path
from flaxzoo.weights.digest import read_stamp, sha256_of, stamp_path
from flaxzoo.weights.hub import resolve
from tests.weights.server import Server

CONTENT = b'\x80\x02' + random.Random(0).randbytes(999_998)  # begins as a pickle
OTHER = CONTENT[:2] + CONTENT[:1:-1]
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """An empty cache, no waiting between attempts, and nothing from the user's own environment."""
    for name in ('FLAXZOO_OFFLINE', 'FLAXZOO_WEIGHTS_MIRROR', 'TORCH_HOME', 'http_proxy', 'HTTP_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    monkeypatch.setenv('FLAXZOO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(download, 'PAUSE', 0.001)
    monkeypatch.setattr(download, 'STALL', 5.0)


@pytest.fixture
def server():
    with Server({'/models/net.pth': CONTENT}) as server:
        yield server


def fetch(*args, **options):
    return hub.fetch(*args, **options).path


def part_of(url):
    path = cache_path(url)
    return path.with_name(f'{path.name}.part')


@pytest.mark.parametrize('sha256', [DIGEST[:8], DIGEST, DIGEST.upper()])
def test_download_and_cache(server, tmp_path, sha256):
    url = server.url('/models/net.pth')
    path = fetch(url, sha256)
    assert path == tmp_path / f'cache/127.0.0.1_{server.server_port}/models/net.pth'
    assert path.read_bytes() == CONTENT
    assert fetch(url, sha256) == path
    assert server.requests == [('/models/net.pth', None)]
    assert sorted(file.name for file in path.parent.iterdir()) == ['net.pth', 'net.pth.lock', 'net.pth.stamp']


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_dir() == tmp_path / 'cache'
    monkeypatch.delenv('FLAXZOO_CACHE')
    assert cache_dir() == tmp_path / 'xdg/flaxzoo'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_dir() == tmp_path / '.cache/flaxzoo'


@pytest.mark.parametrize('sha256', [DIGEST[:8], ''])
def test_interrupted_connections_are_resumed(server, sha256):
    server.headers = {'ETag': '"1"'}
    server.cut = [300_000, 200_000, 100_000]
    assert fetch(server.url('/models/net.pth'), sha256).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, 'bytes=300000-', 'bytes=500000-', 'bytes=600000-']


def test_server_without_ranges(server):
    server.ranges = False
    server.cut = [300_000]
    assert fetch(server.url('/models/net.pth'), DIGEST[:8]).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_file_that_changes_in_between_is_sent_anew(server):
    server.headers = {'ETag': '"1"'}
    server.cut = [300_000]
    changed = OTHER
    original = download._Transfer.receive

    def receive(self, answer, offset):
        try:
            original(self, answer, offset)
        finally:
            server.headers = {'ETag': '"2"'}
            server.files['/models/net.pth'] = changed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download._Transfer, 'receive', receive)
        assert fetch(server.url('/models/net.pth')).read_bytes() == changed


def test_what_an_earlier_call_left_is_resumed_if_the_hash_is_known(server):
    url = server.url('/models/net.pth')
    part_of(url).parent.mkdir(parents=True)
    part_of(url).write_bytes(CONTENT[:400_000])
    assert fetch(url, DIGEST[:8]).read_bytes() == CONTENT
    assert server.requests == [('/models/net.pth', 'bytes=400000-')]


@pytest.mark.parametrize('left', [b'x' * 400_000, b'x' * 1_000_000, b'x' * 2_000_000, CONTENT])
def test_what_an_earlier_call_left_may_be_wrong_or_complete(server, left):
    url = server.url('/models/net.pth')
    part_of(url).parent.mkdir(parents=True)
    part_of(url).write_bytes(left)
    assert fetch(url, DIGEST[:8]).read_bytes() == CONTENT
    assert not part_of(url).exists()


def test_nothing_is_resumed_without_a_hash(server):
    url = server.url('/models/net.pth')
    part_of(url).parent.mkdir(parents=True)
    part_of(url).write_bytes(b'x' * 400_000)
    assert fetch(url).read_bytes() == CONTENT
    assert server.requests == [('/models/net.pth', None)]


def test_wrong_hash(server):
    url = server.url('/models/net.pth')
    with pytest.raises(
        flaxzoo.DownloadError, match=f'the 1000000 bytes received have the SHA-256 {DIGEST}, not 01234567'
    ):
        fetch(url, '01234567')
    assert not cache_path(url).exists()
    assert not part_of(url).exists()


def test_hash_that_the_server_states(server):
    """As huggingface.co: in the answer that redirects to the file."""
    server.redirects['/a'] = ('/models/net.pth', {'X-Linked-Etag': f'"{DIGEST}"'})
    assert fetch(server.url('/a')).read_bytes() == CONTENT
    server.redirects['/b'] = ('/models/net.pth', {'X-Linked-Etag': f'"{"0" * 64}"'})
    with pytest.raises(flaxzoo.DownloadError, match='SHA-256'):
        fetch(server.url('/b'))
    assert not cache_path(server.url('/b')).exists()


def test_missing_file(server):
    with pytest.raises(flaxzoo.DownloadError, match=r'none\.pth: HTTP 404 Not Found'):
        fetch(server.url('/none.pth'), DIGEST[:8])
    assert len(server.requests) == 1


def test_truncated_for_good(server):
    """The connection always closes after the same bytes, and the server cannot resume."""
    server.ranges = False
    server.cut = [500_000] * 100
    with pytest.raises(flaxzoo.DownloadError, match='closed after 500000 of 1000000 bytes'):
        fetch(server.url('/models/net.pth'))
    assert len(server.requests) == download.ATTEMPTS
    assert not cache_path(server.url('/models/net.pth')).exists()


def test_busy_server(server):
    server.status = [503, 429, 500]
    assert fetch(server.url('/models/net.pth'), DIGEST[:8]).read_bytes() == CONTENT
    server.status = [503] * 100
    with pytest.raises(flaxzoo.DownloadError, match='HTTP 503'):
        fetch(server.url('/other.pth'))


def test_forbidden(server):
    server.status = [403]
    with pytest.raises(flaxzoo.DownloadError, match='HTTP 403'):
        fetch(server.url('/models/net.pth'))


def test_web_page_instead_of_a_file(server):
    server.headers = {'Content-Type': 'text/html; charset=utf-8'}
    with pytest.raises(flaxzoo.DownloadError, match='web page'):
        fetch(server.url('/models/net.pth'), DIGEST[:8])
    assert not part_of(server.url('/models/net.pth')).exists()


def test_slow_server(server, monkeypatch):
    """A download may take longer than the time after which a silent connection is given up."""
    monkeypatch.setattr(download, 'STALL', 0.6)
    server.pause = 0.06
    started = time.monotonic()
    assert fetch(server.url('/models/net.pth'), DIGEST[:8]).read_bytes() == CONTENT
    assert time.monotonic() - started > 0.6
    assert len(server.requests) == 1


def test_silent_server(server, monkeypatch):
    monkeypatch.setattr(download, 'STALL', 0.2)
    server.pause, server.block = 30.0, 1000
    monkeypatch.setattr(download, 'ATTEMPTS', 2)
    server.ranges = False
    with pytest.raises(flaxzoo.DownloadError, match=r'timed out\); 1000 bytes so far'):
        fetch(server.url('/models/net.pth'))


def test_no_server():
    with Server({}) as server:
        url = server.url('/x.pth')
    with pytest.raises(flaxzoo.DownloadError, match='connection failed'):
        fetch(url)


def test_mirror(server, monkeypatch):
    """The mirror has the layout of the cache; the hash is verified all the same."""
    server.files['/zoo/download.pytorch.org/models/net-1.pth'] = CONTENT
    monkeypatch.setenv('FLAXZOO_WEIGHTS_MIRROR', server.url('/zoo/'))
    url = 'https://download.pytorch.org/models/net-1.pth'
    assert fetch(url, DIGEST[:8]).read_bytes() == CONTENT
    assert fetch(url) == cache_dir() / 'download.pytorch.org/models/net-1.pth'
    server.files['/zoo/huggingface.co/timm/net.in1k/resolve/main/model.safetensors'] = CONTENT
    assert fetch('hf-hub:timm/net.in1k').read_bytes() == CONTENT
    server.files['/zoo/download.pytorch.org/models/net-2.pth'] = b'other'
    with pytest.raises(flaxzoo.DownloadError, match='SHA-256'):
        fetch('https://download.pytorch.org/models/net-2.pth', DIGEST[:8])


@pytest.mark.parametrize('by_environment', [True, False])
def test_offline(server, monkeypatch, by_environment):
    url = server.url('/models/net.pth')
    if by_environment:
        monkeypatch.setenv('FLAXZOO_OFFLINE', '1')
    offline = None if by_environment else True
    with pytest.raises(flaxzoo.DownloadError, match=r'offline.*put the file at .*net.pth'):
        fetch(url, offline=offline)
    assert server.requests == []
    assert fetch(url, offline=False).exists()
    assert fetch(url, offline=offline).read_bytes() == CONTENT


def test_torch_cache(server, monkeypatch, tmp_path):
    url = server.url('/models/net.pth')
    folder = tmp_path / 'torch/hub/checkpoints'
    folder.mkdir(parents=True)
    (folder / 'net.pth').write_bytes(CONTENT)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    assert fetch(url, DIGEST[:8]) == folder / 'net.pth'
    assert fetch(url, DIGEST[:8], offline=True) == folder / 'net.pth'
    assert server.requests == []
    assert fetch(url) != folder / 'net.pth'  # of unknown hash


def test_torch_cache_of_another_file(server, tmp_path, caplog):
    folder = tmp_path / 'xdg/torch/hub/checkpoints'
    folder.mkdir(parents=True)
    (folder / 'net.pth').write_bytes(b'something else')
    path = fetch(server.url('/models/net.pth'), DIGEST[:8])
    assert path.read_bytes() == CONTENT
    assert (folder / 'net.pth').read_bytes() == b'something else'
    assert 'is not used' in caplog.text


def test_urls():
    assert resolve('hf-hub:timm/x.y') == 'https://huggingface.co/timm/x.y/resolve/main/model.safetensors'
    assert resolve('hf-hub:timm/x@v2') == 'https://huggingface.co/timm/x/resolve/v2/model.safetensors'
    queries = {cache_path(f'https://a.b/c.pth{query}') for query in ('', '?v=1', '?v=2')}
    assert len(queries) == 3
    for url in ('file:///etc/passwd', 'ftp://a.b/c', 'https://', 'https://a.b/', 'hf-hub:timm', 'hf-hub:timm/../x'):
        with pytest.raises(flaxzoo.DownloadError, match='not'):
            resolve(url)


OUTSIDE = ('a.b/a/../../../x', 'a.b/%2e%2e/%2e%2e/x', 'a.b/a\\..\\x', '../x/y', './x', '.../x', 'a.b/ /x')


@pytest.mark.parametrize('url', OUTSIDE)
def test_nothing_leaves_the_cache(url):
    with pytest.raises(flaxzoo.DownloadError, match='cannot be cached'):
        cache_path(f'https://{url}')


@given(st.text(st.sampled_from('ab./\\%2e5cf:@?#[]~ \0'), max_size=20))
def test_any_url_stays_in_the_cache(text):
    try:
        path = cache_path(f'https://{text}')
    except ValueError:  # of urllib too
        return
    assert Path(os.path.normpath(path)).parent.is_relative_to(cache_dir())


def test_an_unverified_file_is_asked_for_again(server):
    """Of a file without a known hash the server is asked whether it has a newer one; with ETags that costs no body."""
    url = server.url('/models/net.pth')
    server.headers = {'ETag': '"1"'}
    fetch(url)
    server.cut = [0]  # of the next body
    assert fetch(url).read_bytes() == CONTENT
    server.conditions = False  # a server that ignores the question states the same ETag
    assert fetch(url).read_bytes() == CONTENT
    server.cut = []
    server.files['/models/net.pth'], server.headers = OTHER, {'ETag': '"2"'}
    assert fetch(url, offline=True).read_bytes() == CONTENT
    assert fetch(url).read_bytes() == OTHER
    assert len(server.requests) == 4
    assert hub.fetch(url).stamp.sha256 == hashlib.sha256(OTHER).hexdigest()


def test_dates_are_believed_once_they_are_past(server):
    """A file may change twice in the second that Last-Modified states."""
    url = server.url('/models/net.pth')
    for date, known in {'Thu, 01 Jan 2026 00:00:00 GMT': True, formatdate(time.time() + 5, usegmt=True): False}.items():
        server.headers = {'Last-Modified': date}
        server.files['/models/net.pth'] = CONTENT
        fetch(url, refresh=True)
        server.files['/models/net.pth'] = OTHER
        assert (fetch(url).read_bytes() == CONTENT) == known


def test_the_copy_is_taken_if_the_server_is_away(server, caplog):
    url = server.url('/models/net.pth')
    fetch(url)
    server.status = [503]
    assert fetch(url).read_bytes() == CONTENT
    assert 'HTTP 503' in caplog.text
    assert 'taking the copy in the cache' in caplog.text
    server.headers = {'Content-Type': 'text/html'}
    assert fetch(url).read_bytes() == CONTENT
    with pytest.raises(flaxzoo.DownloadError, match='web page'):
        fetch(url, refresh=True)
    assert fetch(url, offline=True).read_bytes() == CONTENT


@pytest.mark.parametrize('sha256', ['', DIGEST[:8]])
def test_refresh(server, sha256):
    url = server.url('/models/net.pth')
    server.headers = {'ETag': '"1"'}
    fetch(url, sha256)
    assert fetch(url, sha256, refresh=True).read_bytes() == CONTENT
    assert len(server.requests) == 2
    with pytest.raises(flaxzoo.DownloadError, match='offline'):
        fetch(url, sha256, refresh=True, offline=True)


@pytest.mark.parametrize(
    'body', [b'<html>quota exceeded</html>', b'', b'{"error": "login"}', b'\x1f\x8bgz', b'nothing']
)
def test_what_is_no_weights_file_is_not_kept(server, body):
    url = server.url('/models/net.pth')
    server.files['/models/net.pth'] = body
    for _ in range(2):
        with pytest.raises(
            flaxzoo.DownloadError, match=r'expected a file of torch\.save, safetensors or numpy\.savez, got'
        ):
            fetch(url)
    assert [file.name for file in cache_path(url).parent.iterdir()] == ['net.pth.lock']
    server.files['/models/net.pth'] = CONTENT
    assert fetch(url).read_bytes() == CONTENT


@pytest.mark.parametrize('start', [b'PK\3\4', b'\x80\x02', b'\x10\0\0\0\0\0\0\0{"a"', b'{\0\0\0\0\0\0\0{}'])
def test_beginnings_of_weights(server, start):
    server.files = {'/a': start + b'x' * 20}
    if start[:1] == b'{':  # a header of 123 bytes would be one in 256: JSON is likelier
        with pytest.raises(flaxzoo.DownloadError, match='begins with'):
            fetch(server.url('/a'))
    else:
        fetch(server.url('/a'))


@pytest.mark.parametrize('sha256', ['', DIGEST[:8]])
@pytest.mark.parametrize('damage', [CONTENT[:-1], b'', b'<html>', OTHER])
def test_damaged_copies(server, sha256, damage, caplog):
    url = server.url('/models/net.pth')
    server.headers = {'ETag': '"1"'}
    path = fetch(url, sha256)
    path.write_bytes(damage)
    os.utime(path, ns=(1, 1))
    with pytest.raises(flaxzoo.DownloadError, match=rf'offline, and {path} is not .*SHA-256.*refresh=True'):
        fetch(url, sha256, offline=True)
    assert fetch(url, sha256).read_bytes() == CONTENT
    assert f'{path} is not' in caplog.text
    assert 'fetched anew' in caplog.text
    assert fetch(url, sha256, offline=True) == path


def test_a_copy_that_was_only_touched_is_good(server):
    path = fetch(server.url('/models/net.pth'))
    os.utime(path, ns=(1, 1))
    assert fetch(server.url('/models/net.pth'), offline=True) == path


@pytest.mark.parametrize('stamp', [b'', b'{', b'[]', b'{"sha256": 1, "size": 1, "mtime_ns": 1}', b'{"other": 1}', None])
def test_copies_without_a_stamp(server, stamp):
    """Put there by hand or by an older version: believed if they begin as weights do, and stamped."""
    url = server.url('/models/net.pth')
    path = cache_path(url)
    path.parent.mkdir(parents=True)
    path.write_bytes(b'<html>')
    if stamp is not None:
        stamp_path(path).write_bytes(stamp)
    with pytest.raises(flaxzoo.DownloadError, match='web page'):
        fetch(url, offline=True)
    path.write_bytes(OTHER)
    assert fetch(url, offline=True).read_bytes() == OTHER
    assert read_stamp(path).sha256 == hashlib.sha256(OTHER).hexdigest()
    assert fetch(url).read_bytes() == CONTENT


def hashed(monkeypatch):
    """The files that are hashed from now on."""
    files = []

    def counting(path):
        files.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(cache, 'sha256_of', counting)
    return files


def test_a_copy_is_hashed_once(server, monkeypatch, tmp_path):
    url = server.url('/models/net.pth')
    fetch(url, DIGEST)
    files = hashed(monkeypatch)
    fetch(url, DIGEST)
    assert files == []
    stamp_path(cache_path(url)).unlink()
    fetch(url, DIGEST)
    fetch(url, DIGEST)
    assert files == ['net.pth']
    folder = tmp_path / 'xdg/torch/hub/checkpoints'  # torch's cache likewise
    folder.mkdir(parents=True)
    (folder / 'other.pth').write_bytes(OTHER)
    for _ in range(2):
        assert fetch('https://a.b/other.pth', hashlib.sha256(OTHER).hexdigest()[:8]) == folder / 'other.pth'
    assert files == ['net.pth', 'other.pth']
    (folder / 'other.pth').write_bytes(CONTENT)  # and noticed if it changes
    with pytest.raises(flaxzoo.DownloadError, match='offline'):
        fetch('https://a.b/other.pth', hashlib.sha256(OTHER).hexdigest()[:8], offline=True)


def test_a_cache_that_cannot_be_written_to(server, monkeypatch):
    url = server.url('/models/net.pth')
    path = fetch(url, DIGEST)
    stamp_path(path).unlink()

    def refuse(*_, **__):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(Path, 'write_text', refuse)
    assert fetch(url, DIGEST) == path
    monkeypatch.setattr(Path, 'open', refuse)
    with pytest.raises(flaxzoo.DownloadError, match=r'cannot be kept at .*other\.pth: Permission denied'):
        fetch(server.url('/other.pth'), DIGEST)


@pytest.mark.parametrize('sha256', ['', DIGEST])
def test_full_disk(server, monkeypatch, sha256):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    url = server.url('/models/net.pth')
    with pytest.raises(flaxzoo.DownloadError, match=r'cannot be kept at .*net\.pth: No space left'):
        fetch(url, sha256)
    assert part_of(url).exists() == bool(sha256)  # what has come is kept only if it can be resumed
    monkeypatch.undo()


def test_a_directory_in_the_way(server):
    server.files |= {'/a': CONTENT, '/a/b.pth': CONTENT}
    fetch(server.url('/a/b.pth'))
    with pytest.raises(flaxzoo.DownloadError, match=r'cannot be kept at .*/a: Is a directory'):
        fetch(server.url('/a'))


@pytest.mark.parametrize('sha256', ['', DIGEST])
def test_partial_answers_that_nobody_asked_for(server, sha256):
    server.partial = 300_000
    assert fetch(server.url('/models/net.pth'), sha256).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, 'bytes=300000-']
    server.headers = {'Content-Range': 'bytes 5-9/10'}
    server.files['/other.pth'] = CONTENT
    with pytest.raises(flaxzoo.DownloadError, match='another part'):
        fetch(server.url('/other.pth'), sha256)


@pytest.mark.parametrize('number', [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks(server, monkeypatch, caplog, number):
    def unsupported(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', unsupported)
    url = server.url('/models/net.pth')
    part_of(url).parent.mkdir(parents=True)
    part_of(url).write_bytes(b'of another process')
    assert fetch(url, DIGEST).read_bytes() == CONTENT
    assert 'no locks' in caplog.text
    assert part_of(url).read_bytes() == b'of another process'


@pytest.mark.parametrize('status', [401, 403, 404, 407])
def test_what_refusals_mean(server, status):
    server.status = [status]
    meaning = {401: 'private or gated', 403: 'refuses access', 404: 'no such file', 407: 'proxy wants a login'}[status]
    with pytest.raises(flaxzoo.DownloadError, match=rf'HTTP {status} .*{meaning}'):
        fetch(server.url('/models/net.pth'))
    assert len(server.requests) == 1


class Refusing:
    """An opener of URLs that fails."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    def open(self, *_, **__):
        self.calls += 1
        raise urllib.error.URLError(self.error)


@pytest.mark.parametrize(
    ('error', 'message', 'calls'),
    [
        (
            ssl.SSLCertVerificationError('self-signed certificate'),
            r'certificate of a\.b is not trusted.*SSL_CERT_FILE',
            1,
        ),
        (
            socket.gaierror(-2, 'Name or service not known'),
            r'name of a\.b cannot be resolved.*put the file at /.*c\.pth',
            5,
        ),
        (OSError('Tunnel connection failed: 403 Forbidden'), r'refuses the connection \(Tunnel', 1),
        (ConnectionRefusedError(111, 'Connection refused'), r'connection failed.*put the file at /.*c\.pth', 5),
    ],
)
def test_what_failed_connections_mean(monkeypatch, error, message, calls):
    opener = Refusing(error)
    monkeypatch.setattr(urllib.request, 'build_opener', lambda *_: opener)
    with pytest.raises(flaxzoo.DownloadError, match=message):
        fetch('https://a.b/c.pth')
    assert opener.calls == calls


def test_the_proxy_is_named_without_its_password(monkeypatch):
    with Server({}) as server:
        proxy = server.url('').replace('//', '//user:secret@')
    monkeypatch.setenv('http_proxy', proxy)
    with pytest.raises(flaxzoo.DownloadError, match=r'through the proxy 127\.0\.0\.1:\d+ failed') as caught:
        fetch('http://a.b/c.pth')
    assert 'secret' not in str(caught.value)


def test_secrets_in_a_url_are_not_kept(server):
    server.files['/net.pth?token=secret'] = CONTENT
    path = fetch(server.url('/net.pth?token=secret'))
    assert 'secret' not in stamp_path(path).read_text()
    assert 'secret' not in path.name
    with pytest.raises(flaxzoo.DownloadError, match='user in it') as caught:
        fetch(server.url('/net.pth').replace('//', '//user:secret@'))
    assert 'secret' not in str(caught.value)


@pytest.fixture
def hub_server(monkeypatch):
    """In the place of huggingface.co."""
    with Server({}) as server:
        monkeypatch.setenv('FLAXZOO_WEIGHTS_MIRROR', server.url(''))
        yield server


REPOSITORY = '/huggingface.co/me/net/resolve'


def test_repositories(hub_server):
    """The first of the usual files that the repository has; a file that is named."""
    with pytest.raises(
        flaxzoo.DownloadError, match=r'none of model\.safetensors, .*pytorch_model\.bin.*hf-hub:me/net/FILE'
    ):
        fetch('hf-hub:me/net')
    assert [path.rpartition('/')[2] for path, _ in hub_server.requests] == list(hub.FILES)
    hub_server.files = {
        f'{REPOSITORY}/main/pytorch_model.bin': CONTENT,
        f'{REPOSITORY}/main/deep/x.pth': OTHER,
        f'{REPOSITORY}/v2/x.pth': CONTENT,
    }
    assert fetch('hf-hub:me/net').read_bytes() == CONTENT
    assert fetch('hf-hub:me/net', offline=True).read_bytes() == CONTENT
    assert fetch('hf-hub:me/net/deep/x.pth').read_bytes() == OTHER
    assert fetch('hf-hub:me/net@v2/x.pth').read_bytes() == CONTENT
    hub_server.status = [404, 404, 503]  # the server goes away
    assert fetch('hf-hub:me/net').read_bytes() == CONTENT
    hub_server.status = [503] * 100
    assert fetch('hf-hub:me/net').read_bytes() == CONTENT
    with pytest.raises(flaxzoo.DownloadError, match='HTTP 503'):
        fetch('hf-hub:me/net', refresh=True)
    hub_server.status = [401]
    with pytest.raises(flaxzoo.DownloadError, match='private or gated'):
        fetch('hf-hub:me/private')
    with pytest.raises(flaxzoo.DownloadError, match=r'offline.*model\.safetensors'):
        fetch('hf-hub:me/other', offline=True)


def test_pushes_and_pins(hub_server):
    """What was pushed is seen at a branch; a commit is never asked for again."""
    commit, files = 'c' * 40, hub_server.files
    files[f'{REPOSITORY}/main/model.safetensors'] = files[f'{REPOSITORY}/{commit}/model.safetensors'] = CONTENT
    hub_server.headers = {'ETag': '"1"', 'X-Repo-Commit': commit}
    copy = hub.fetch('hf-hub:me/net')
    assert copy.stamp.revision == commit
    assert hub.fetch('hf-hub:me/net') == copy
    files[f'{REPOSITORY}/main/model.safetensors'] = OTHER
    hub_server.headers = {'ETag': '"2"', 'X-Repo-Commit': 'd' * 40}
    newer = hub.fetch('hf-hub:me/net')
    assert newer.path.read_bytes() == OTHER
    assert newer.stamp.revision == 'd' * 40
    pinned = fetch(f'hf-hub:me/net@{commit}')
    count = len(hub_server.requests)
    assert fetch(f'hf-hub:me/net@{commit}') == pinned
    assert pinned.read_bytes() == CONTENT
    assert len(hub_server.requests) == count


def test_a_digest_in_the_redirection_answers_the_question(server, hub_server):
    """huggingface.co redirects to a file with its SHA-256; nothing is sent if that is the one at hand."""
    path = f'{REPOSITORY}/main/model.safetensors'
    hub_server.files['/stored'] = CONTENT
    hub_server.redirects[path] = ('/stored', {'X-Linked-Etag': f'"{DIGEST}"', 'X-Repo-Commit': 'c' * 40})
    assert hub.fetch('hf-hub:me/net').stamp.revision == 'c' * 40
    assert fetch('hf-hub:me/net').read_bytes() == CONTENT
    assert [path for path, _ in hub_server.requests] == [path, '/stored', path]


@pytest.mark.parametrize('stated', [True, False])
def test_shards(hub_server, stated):
    """All of one commit if the server states it, beside the index."""
    commit = 'c' * 40 if stated else 'main'
    index = {'weight_map': {'a': 'model-1.safetensors', 'b': 'model-2.safetensors', 'c': 'model-1.safetensors'}}
    for revision in {'main', commit}:
        hub_server.files[f'{REPOSITORY}/{revision}/model.safetensors.index.json'] = json.dumps(index).encode()
    for i in (1, 2):
        hub_server.files[f'{REPOSITORY}/{commit}/model-{i}.safetensors'] = CONTENT
    hub_server.headers = {'X-Repo-Commit': commit} if stated else {}
    path = fetch('hf-hub:me/net')
    assert path.parent == cache_dir() / f'huggingface.co/me/net/resolve/{commit}'
    assert {file.name for file in path.parent.glob('*.safetensors')} == {'model-1.safetensors', 'model-2.safetensors'}
    assert fetch('hf-hub:me/net', offline=True) == path


@pytest.mark.parametrize('index', [{}, [], {'weight_map': 1}, {'weight_map': {'a': '../x'}}, {'weight_map': {'a': 1}},
                                   {'weight_map': {'a': 'a?b.bin'}}, '{"weight_map":' + '[' * 100_000])  # fmt: skip
def test_bad_indices(hub_server, index):
    content = index if isinstance(index, str) else json.dumps(index)
    hub_server.files[f'{REPOSITORY}/main/model.safetensors.index.json'] = content.encode()
    with pytest.raises(flaxzoo.DownloadError, match=r'index|expected a JSON object|names .* not the name'):
        fetch('hf-hub:me/net')


@pytest.mark.parametrize('target', ['file:///etc/hostname', 'ftp://127.0.0.1/x', 'data:,x', 'gopher://127.0.0.1/x'])
def test_redirections_to_what_is_no_web_server(server, target):
    server.redirects['/models/net.pth'] = target, {'Location': target}
    with pytest.raises(flaxzoo.DownloadError, match=r'[Rr]edirect'):
        fetch(server.url('/models/net.pth'))
    assert len(server.requests) == 1


@pytest.mark.parametrize(('before', 'after', 'refused'), [
    ('http', 'https', False), ('http', 'http', False), ('https', 'https', False), ('https', 'http', True),
])  # fmt: skip
def test_redirections_do_not_leave_https(before, after, refused, tmp_path):
    url = f'{before}://127.0.0.1/x.pth'
    redirects = download._Redirects(download._Transfer(url, tmp_path / 'part'))
    request = urllib.request.Request(url)
    with pytest.raises(flaxzoo.DownloadError, match='not to https') if refused else contextlib.nullcontext():
        redirects.redirect_request(request, io.BytesIO(), 302, 'Found', {}, f'{after}://127.0.0.2/x.pth')


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar(server, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    fetch(server.url('/models/net.pth'))
    assert f'net.pth  [{"#" * 30}] 1.0/1.0 MB' in terminal.getvalue()
    assert terminal.getvalue().endswith('\n')
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    server.files['/quiet.pth'] = CONTENT
    fetch(server.url('/quiet.pth'))
    assert sys.stderr.getvalue() == ''


PROCESS = """
import pathlib, sys, time
from flaxzoo.weights.hub import fetch
url, sha256, ready, go = sys.argv[1:]
pathlib.Path(ready).touch()
while not pathlib.Path(go).exists():
    time.sleep(0.01)
print(fetch(url, sha256).path)
"""


def start(url, ready, go):
    return subprocess.Popen(
        [sys.executable, '-c', PROCESS, url, DIGEST[:8], ready, go], stdout=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_and_one_that_is_killed(server, tmp_path):
    """Two race for a file: it is sent once. A third is killed in the middle: the next call resumes what it left."""
    server.pause = 0.05
    url, other = server.url('/models/net.pth'), server.url('/models/killed.pth')
    server.files['/models/killed.pth'] = CONTENT
    ready = [tmp_path / f'ready{i}' for i in range(3)]
    processes = [start(address, ready[i], tmp_path / 'go') for i, address in enumerate([url, url, other])]
    wait_for(lambda: all(path.exists() for path in ready))
    (tmp_path / 'go').touch()
    wait_for(lambda: part_of(other).exists() and part_of(other).stat().st_size > 200_000)
    os.kill(processes[2].pid, signal.SIGKILL)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs[0] == outputs[1] == f'{cache_path(url)}\n'
    assert cache_path(url).read_bytes() == CONTENT
    assert [path for path, _ in server.requests].count('/models/net.pth') == 1
    left = part_of(other).stat().st_size
    assert 200_000 < left < len(CONTENT)
    server.requests.clear()
    assert fetch(other, DIGEST[:8]).read_bytes() == CONTENT
    assert server.requests == [('/models/killed.pth', f'bytes={left}-')]
