"""Downloads from a real server that fails in every way: resumed, verified, shared between processes."""

import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import flaxzoo
from flaxzoo.weights import download
from flaxzoo.weights.hub import cache_dir, cache_path, fetch, resolve
from tests.weights.server import Server

CONTENT = random.Random(0).randbytes(1_000_000)
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


def part_of(url):
    path = cache_path(url)
    return path.with_name(f'{path.name}.part')


@pytest.mark.parametrize('sha256', [DIGEST[:8], DIGEST, DIGEST.upper(), ''])
def test_download_and_cache(server, tmp_path, sha256):
    url = server.url('/models/net.pth')
    path = fetch(url, sha256)
    assert path == tmp_path / f'cache/127.0.0.1_{server.server_port}/models/net.pth'
    assert path.read_bytes() == CONTENT
    assert fetch(url, sha256) == path
    assert server.requests == [('/models/net.pth', None)]
    assert sorted(file.name for file in path.parent.iterdir()) == ['net.pth', 'net.pth.lock']


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
    changed = CONTENT[::-1]
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
    with pytest.raises(flaxzoo.DownloadError, match='the 1000000 bytes received does not begin with 01234567'):
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
    for path in ('/a/../../../x', '/%2e%2e/%2e%2e/x', '/a\\..\\x'):
        with pytest.raises(flaxzoo.DownloadError, match='path'):
            cache_path(f'https://a.b{path}')


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
print(fetch(url, sha256))
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
