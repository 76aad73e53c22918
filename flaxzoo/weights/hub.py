"""Fetching weights: a cache, resumed and verified downloads, a mirror, offline mode.

Environment:
  FLAXZOO_CACHE: where files are kept; else $XDG_CACHE_HOME/flaxzoo, else ~/.cache/flaxzoo. A file of
    https://HOST/PATH lies under HOST/PATH.
  FLAXZOO_WEIGHTS_MIRROR: a URL under which the same HOST/PATH files are, for example a cache served over HTTP.
  FLAXZOO_OFFLINE: 1 to never use the network.
  TORCH_HOME: torch's cache; a file there is used if its hash is known and fits.
"""

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from flaxzoo.weights.errors import DownloadError

logger = logging.getLogger('flaxzoo')


def fetch(url: str, sha256: str = '', *, offline: bool | None = None) -> Path:
    """The local file of a URL, downloaded if it is not in a cache.

    Safe with several processes at once: one downloads, the others wait. An interrupted download of a file whose hash
    is known is resumed by the next call.

    Args:
      url: 'https://...', 'http://...' or 'hf-hub:OWNER/NAME[@REVISION]', the model.safetensors of that repository.
      sha256: the digest, or its first digits, that the file must have. Without it the length that the server states is
        verified, and the digest if the server states one (huggingface.co does).
      offline: never use the network; None follows FLAXZOO_OFFLINE.

    Raises:
      DownloadError: the file is not in a cache and could not be downloaded, or is not what it should be.
    """
    from flaxzoo.weights.download import download

    url = resolve(url)
    path = cache_path(url)
    if path.exists():
        return path
    found = _in_torch_cache(url, sha256)
    if found:
        return found
    offline = os.environ.get('FLAXZOO_OFFLINE', '') not in ('', '0') if offline is None else offline
    if offline:
        raise DownloadError(f'offline, and {url} is not in the cache; put the file at {path}')
    mirror = os.environ.get('FLAXZOO_WEIGHTS_MIRROR')
    source = f'{mirror.rstrip("/")}/{quote(path.relative_to(cache_dir()).as_posix())}' if mirror else url
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f'{path.name}.lock')):
        if not path.exists():  # another process may have been faster
            download(source, path, sha256)
    return path


def resolve(url: str) -> str:
    """The https URL behind 'hf-hub:OWNER/NAME[@REVISION][/FILE]'; others unchanged.

    Raises:
      DownloadError: it is not a URL that can be fetched.
    """
    if url.startswith('hf-hub:'):
        match = re.fullmatch(r'hf-hub:(\w[\w.-]*)/(\w[\w.-]*)(?:@(\w[\w.-]*))?(?:/(\w[\w.-]*))?', url)
        if not match:
            raise DownloadError(f'{url!r} is not of the form hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION')
        owner, name, revision, file = match.groups()
        repository = f'https://huggingface.co/{owner}/{name}'
        return f'{repository}/resolve/{revision or "main"}/{file or "model.safetensors"}'
    parts = urlsplit(url)
    if parts.scheme not in ('http', 'https') or not parts.hostname or not parts.path.strip('/'):
        raise DownloadError(f'{url!r} is not the http(s) URL of a file')
    return url


def cache_dir() -> Path:
    """Where downloaded files are kept."""
    if os.environ.get('FLAXZOO_CACHE'):
        return Path(os.environ['FLAXZOO_CACHE']).expanduser()
    return _xdg_cache() / 'flaxzoo'


def cache_path(url: str) -> Path:
    """Where the file of a URL is kept: HOST/PATH, with a digest of the query if there is one."""
    parts = urlsplit(url)
    steps = [step for step in unquote(parts.path).split('/') if step]
    if any(step in ('.', '..') or '\\' in step or '\0' in step for step in steps):
        raise DownloadError(f'{url!r} has a path that cannot be cached')
    if parts.query:
        steps[-1] = f'{hashlib.sha256(parts.query.encode()).hexdigest()[:12]}-{steps[-1]}'
    return cache_dir().joinpath(parts.netloc.rpartition('@')[2].replace(':', '_'), *steps)


def has_digest(path: Path, sha256: str) -> bool:
    """Whether the file's SHA-256 begins with these hexadecimal digits."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest().startswith(sha256.lower())


def _in_torch_cache(url: str, sha256: str) -> Path | None:
    home = os.environ.get('TORCH_HOME')
    path = (Path(home).expanduser() if home else _xdg_cache() / 'torch') / 'hub/checkpoints' / cache_path(url).name
    if not sha256 or not path.is_file():
        return None
    if not has_digest(path, sha256):
        logger.warning('%s is not used: its SHA-256 does not begin with %s', path, sha256)
        return None
    return path


def _xdg_cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()


@contextlib.contextmanager
def _locked(path: Path, poll: float = 0.2) -> Iterator[None]:
    """Holds a lock between processes; the system releases it if this one is killed."""
    with path.open('a') as file:
        waited = False
        while not _try_lock(file.fileno()):
            if not waited:
                logger.info('another process is downloading %s: waiting', path.stem)
                waited = True
            time.sleep(poll)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
