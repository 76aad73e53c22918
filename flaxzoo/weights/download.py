"""One HTTP download: resumed, retried, verified, and only then given its name."""

import email.utils
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from flaxzoo.weights.digest import Stamp, sha256_of
from flaxzoo.weights.errors import DownloadError
from flaxzoo.weights.progress import Progress
from flaxzoo.weights.refusals import Interrupted, connection_error, status_error

ATTEMPTS = 5  # without progress in between
STALL = 30.0  # seconds without a byte after which a connection is given up
PATIENCE = 10.0  # the same where a copy is at hand
PAUSE = 0.5  # seconds before the second attempt, doubled each time
CHUNK = 1 << 18
RESERVED = "%/:?#[]@!$&'()*+,;=~"  # characters of a URL that stay as they are


class _NotModified(Exception):
    """The server has nothing newer."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps what huggingface.co states in the answer that redirects to a file: its SHA-256 and the commit.

    A redirection may name any host, but nothing less safe than what was asked for: no ftp, no http instead of https.
    """

    def __init__(self, transfer: '_Transfer'):
        self.transfer = transfer

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(self.transfer.url).scheme, urlsplit(newurl).scheme
        if after != 'https' and (before, after) != ('http', 'http'):
            fp.close()
            raise DownloadError(f'{self.transfer.url}: refused: the server redirects to {newurl[:200]!r}, not to https')
        self.transfer.note(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, path: Path, sha256: str = '', *, part: Path, known: Stamp | None = None) -> Stamp | None:
    """Downloads `url` to `path`; the caller sees to it that no other process writes to `part`.

    What has come so far is in `part`. It is kept for the next call if `sha256` is known: a file of unknown hash may be
    another one by then.

    Args:
      sha256: the digest, or its first digits, that the file must have.
      known: of the copy that is at `path` now. The server is asked for another one, once and with little patience.

    Returns:
      The stamp of the new file, or None if the server has nothing newer than `known`.

    Raises:
      DownloadError: the server refuses, the connection keeps failing, the length or the hash is wrong, or what came is
        no weights file.
      OSError: the file cannot be written.
    """
    if not sha256:
        part.unlink(missing_ok=True)
    resumed = part.exists()
    transfer = _Transfer(url, part, known)
    try:
        transfer.run(path)
        digest, expected = sha256_of(part), (sha256 or transfer.sha256).lower()
        if digest.startswith(expected):
            if not expected:
                check_signature(part, url)
            part.replace(path)
            return transfer.stamp(path, digest)
    except _NotModified:
        return None
    except (OSError, DownloadError):
        if not sha256:
            part.unlink(missing_ok=True)
        raise
    size = transfer.received
    part.unlink()
    if resumed:  # what an earlier call left may have been at fault
        return download(url, path, sha256, part=part, known=known)
    raise DownloadError(f'{url}: the {size} bytes received have the SHA-256 {digest}, not {expected}')


def check_signature(path: Path, url: str) -> None:
    """Raises DownloadError unless the first bytes are those of weights or, if the URL ends in .json, of JSON."""
    with path.open('rb') as file:
        start = file.read(16)
    if urlsplit(url).path.endswith('.json'):
        fits, expected = start.lstrip().startswith(b'{'), 'a JSON object'
    else:
        # zip (torch.save, numpy.savez), pickle (older torch.save), or safetensors: a length and a JSON object.
        fits = start.startswith((b'PK\3\4', b'\x80')) or (start[8:9] == b'{' and start[:1] not in b'{<')
        expected = 'a file of torch.save, safetensors or numpy.savez'
    if not fits:
        what = 'a web page' if start.lstrip().startswith(b'<') else f'something that begins with {start!r}'
        raise DownloadError(f'{url}: expected {expected}, got {what}')


class _Transfer:
    """The state of a download over several connections."""

    def __init__(self, url: str, part: Path, known: Stamp | None = None):
        self.url, self.part, self.known = url, part, known
        self.etag = self.modified = ''  # of what is being received
        self.sha256 = self.revision = ''  # that the server states
        self.complete = False

    @property
    def received(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def stamp(self, path: Path, digest: str) -> Stamp:
        """The stamp of the received file, which is at `path` now."""
        url = urlsplit(self.url)._replace(query='', fragment='').geturl()
        stamp = Stamp(digest, url=url, etag=self.etag, modified=self.modified, revision=self.revision)
        return stamp.restamped(path)

    def run(self, path: Path) -> None:
        """Connects until all has come."""
        failures = 0
        while not self.complete:
            before = self.received
            try:
                self.attempt()
            except Interrupted as error:
                failures = 1 if self.received > before else failures + 1
                if failures == ATTEMPTS or (self.known and not self.received):
                    advice = '' if self.known else f'. Without a network, put the file at {path}'
                    raise DownloadError(f'{self.url}: {error}; {self.received} bytes so far{advice}') from error
                time.sleep(PAUSE * 2 ** (failures - 1))

    def attempt(self) -> None:
        """One connection, which asks for what is missing."""
        headers = {'User-Agent': 'flaxzoo', 'Accept-Encoding': 'identity'}
        offset = self.received
        if offset:
            headers['Range'] = f'bytes={offset}-'
            if self.etag and not self.etag.startswith('W/'):  # if the file has changed since, send all of it
                headers['If-Range'] = self.etag
        elif self.known and self.known.etag:
            headers['If-None-Match'] = self.known.etag
        elif self.known and self.known.modified:
            headers['If-Modified-Since'] = self.known.modified
        request = urllib.request.Request(quote(self.url, safe=RESERVED), headers=headers)
        timeout = min(STALL, PATIENCE) if self.known and not offset else STALL
        try:
            answer = urllib.request.build_opener(_Redirects(self)).open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            error.close()
            self.refused(error, offset)
        except (OSError, http.client.HTTPException) as error:
            raise connection_error(self.url, error) from error
        else:
            with answer:
                self.receive(answer, offset)

    def refused(self, error: urllib.error.HTTPError, offset: int) -> None:
        """What a status other than 200 and 206 means."""
        if error.code == 304 and self.known:
            raise _NotModified
        if error.code == 416 and offset:
            # Nothing is left to send: all has come, or the part is of something else.
            total = (error.headers.get('Content-Range') or '').rpartition('/')[2]
            self.complete = total == str(offset)
            if not self.complete:
                self.part.unlink()
            return
        raise status_error(self.url, error) from error

    def note(self, headers: Any) -> None:
        """Keeps the digest and the commit that an answer states."""
        digest = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get('X-Linked-Etag') or '')
        self.sha256 = digest[1] if digest else self.sha256
        commit = re.fullmatch(r'[0-9a-f]{40}', headers.get('X-Repo-Commit') or '')
        self.revision = commit[0] if commit else self.revision
        if self.known and self.sha256 == self.known.sha256:
            raise _NotModified

    def receive(self, answer: Any, offset: int) -> None:
        """Appends an answer's body to the part."""
        if answer.headers.get_content_type() == 'text/html':
            raise DownloadError(f'{self.url}: the server sends a web page, not a file')
        self.note(answer.headers)
        self.etag, self.modified = _validators(answer.headers)
        if self.known and not offset and _same(self.known, self.etag, self.modified):
            raise _NotModified
        length = answer.headers.get('Content-Length') or ''
        total = int(length) if length.isdigit() else None
        if answer.status == 206:
            place = re.fullmatch(r'bytes (\d+)-\d+/(\d+)', answer.headers.get('Content-Range') or '')
            if not place or int(place[1]) != offset:
                self.part.unlink(missing_ok=True)
                raise Interrupted('the server sent another part than was asked for')
            total = int(place[2])
        else:
            offset = 0
        with self.part.open('ab' if offset else 'wb') as file, Progress(self.part.stem, total) as progress:
            for chunk in _chunks(answer, self.url):
                file.write(chunk)
                progress.show(file.tell())
            file.flush()
            os.fsync(file.fileno())
            received = file.tell()
        if total is not None and received < total:
            raise Interrupted(f'the connection closed after {received} of {total} bytes')
        self.complete = True


def _chunks(answer: Any, url: str) -> Iterator[bytes]:
    try:
        while chunk := answer.read1(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise connection_error(url, error) from error


def _validators(headers: Any) -> tuple[str, str]:
    """ETag and Last-Modified; the latter only if the file cannot have changed again within that second."""
    modified = headers.get('Last-Modified') or ''
    try:
        settled = email.utils.parsedate_to_datetime(headers['Date']) > email.utils.parsedate_to_datetime(modified)
    except (TypeError, ValueError):
        settled = False
    return headers.get('ETag') or '', modified if settled else ''


def _same(known: Stamp, etag: str, modified: str) -> bool:
    """Whether a file with these validators is the known one, of a server that ignores what it was asked."""
    return etag == known.etag if etag and known.etag else bool(modified) and modified == known.modified
