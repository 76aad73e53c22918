"""One HTTP download: resumed, retried, verified, and only then given its name."""

import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from flaxzoo.weights.errors import DownloadError
from flaxzoo.weights.hub import has_digest

ATTEMPTS = 5  # without progress in between
STALL = 30.0  # seconds without a byte after which a connection is given up
PAUSE = 0.5  # seconds before the second attempt, doubled each time
CHUNK = 1 << 18
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class _Interrupted(Exception):
    """A connection that failed in a way that another attempt may mend."""


class _KeepLinkedHash(urllib.request.HTTPRedirectHandler):
    """huggingface.co states the SHA-256 of a large file in the answer that redirects to it."""

    sha256 = ''

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        digest = re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get('X-Linked-Etag', ''))
        self.sha256 = digest[1] if digest else self.sha256
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, path: Path, sha256: str = '') -> None:
    """Downloads `url` to `path`; the caller sees to it that no other process does.

    What has come so far is in `path` + '.part'. It is kept for the next call if `sha256` is known: a file of unknown
    hash may be another one by then.

    Raises:
      DownloadError: the server refuses, the connection keeps failing, or the length or the hash is wrong.
    """
    part = path.with_name(f'{path.name}.part')
    if not sha256:
        part.unlink(missing_ok=True)
    resumed = part.exists()
    transfer = _Transfer(url, part)
    failures = 0
    while not transfer.complete:
        before = transfer.received
        try:
            transfer.attempt()
        except _Interrupted as error:
            failures = 1 if transfer.received > before else failures + 1
            if failures == ATTEMPTS:
                raise DownloadError(f'{url}: {error}; {transfer.received} bytes so far') from error
            time.sleep(PAUSE * 2 ** (failures - 1))
    expected = sha256 or transfer.sha256
    if not expected or has_digest(part, expected):
        part.replace(path)
        return
    size = transfer.received
    part.unlink()
    if resumed:  # what an earlier call left may have been at fault
        return download(url, path, sha256)
    raise DownloadError(f'{url}: the SHA-256 of the {size} bytes received does not begin with {expected}')


class _Transfer:
    """The state of a download over several connections."""

    def __init__(self, url: str, part: Path):
        self.url, self.part = url, part
        self.validator = ''
        self.sha256 = ''  # that the server states
        self.complete = False

    @property
    def received(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def attempt(self) -> None:
        """One connection, which asks for what is missing."""
        headers = {'User-Agent': 'flaxzoo', 'Accept-Encoding': 'identity'}
        offset = self.received
        if offset:
            headers['Range'] = f'bytes={offset}-'
            if self.validator:  # if the file has changed since, send all of it
                headers['If-Range'] = self.validator
        redirects = _KeepLinkedHash()
        request = urllib.request.Request(self.url, headers=headers)
        try:
            answer = urllib.request.build_opener(redirects).open(request, timeout=STALL)
        except urllib.error.HTTPError as error:
            error.close()
            self.refused(error, offset)
        except (OSError, http.client.HTTPException) as error:
            raise _interrupted(error) from error
        else:
            self.sha256 = redirects.sha256 or self.sha256
            with answer:
                self.receive(answer, offset)

    def refused(self, error: urllib.error.HTTPError, offset: int) -> None:
        """What a status other than 200 and 206 means."""
        if error.code == 416 and offset:
            # Nothing is left to send: all has come, or the part is of something else.
            total = (error.headers.get('Content-Range') or '').rpartition('/')[2]
            self.complete = total == str(offset)
            if not self.complete:
                self.part.unlink()
            return
        if error.code in TEMPORARY:
            raise _Interrupted(f'HTTP {error.code} {error.reason}') from error
        raise DownloadError(f'{self.url}: HTTP {error.code} {error.reason}') from error

    def receive(self, answer: Any, offset: int) -> None:
        """Appends an answer's body to the part."""
        if answer.headers.get_content_type() == 'text/html':
            raise DownloadError(f'{self.url}: the server sends a web page, not a file')
        if answer.status == 206:
            if not (answer.headers.get('Content-Range') or '').startswith(f'bytes {offset}-'):
                self.part.unlink()
                raise _Interrupted('the server resumed at another place')
        else:
            offset = 0
        etag = answer.headers.get('ETag') or ''
        self.validator = '' if etag.startswith('W/') else etag
        length = answer.headers.get('Content-Length')
        total = offset + int(length) if length and length.isdigit() else None
        with self.part.open('ab' if offset else 'wb') as file, _Progress(self.part.stem, total) as progress:
            for chunk in _chunks(answer):
                file.write(chunk)
                progress.show(file.tell())
            file.flush()
            os.fsync(file.fileno())
            received = file.tell()
        if total is not None and received < total:
            raise _Interrupted(f'the connection closed after {received} of {total} bytes')
        self.complete = True


def _chunks(answer: Any) -> Iterator[bytes]:
    try:
        while chunk := answer.read1(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _interrupted(error) from error


def _interrupted(error: Exception) -> _Interrupted:
    reason = getattr(error, 'reason', error)
    return _Interrupted(f'the connection failed ({reason or type(error).__name__})')


class _Progress:
    """A line on a terminal that shows how far a download is; nothing where stderr is not a terminal."""

    def __init__(self, name: str, total: int | None, stream: IO[str] | None = None):
        self.name, self.total, self.stream = name, total, stream or sys.stderr
        self.started = self.shown = time.monotonic()
        self.first: int | None = None

    def __enter__(self) -> '_Progress':
        return self

    def __exit__(self, *_: object) -> None:
        if self.first is not None and self.stream.isatty():
            self.stream.write('\n')

    def show(self, received: int) -> None:
        """Draws the line, ten times a second at most and once at the end."""
        now = time.monotonic()
        self.first = received if self.first is None else self.first
        if not self.stream.isatty() or (now - self.shown < 0.1 and received != self.total):
            return
        self.shown = now
        speed = (received - self.first) / max(now - self.started, 1e-3) / 1e6
        text = f'{self.name}  {received / 1e6:.1f} MB'
        if self.total:
            filled = 30 * received // self.total
            text = f'{self.name}  [{"#" * filled}{"." * (30 - filled)}] {received / 1e6:.1f}/{self.total / 1e6:.1f} MB'
        self.stream.write(f'\r{text}  {speed:.1f} MB/s ')
        self.stream.flush()
