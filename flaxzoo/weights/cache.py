"""The cache of downloaded files: what is kept, for how long it is believed, and where.

A file whose hash is known is verified once and never asked for again; nor is one of a hub repository at a commit. Of
any other file the server is asked, once a call, whether it has a newer one. A stamp beside each file (NAME.stamp) holds
its SHA-256, so a file that was damaged or exchanged since is noticed and not used.
"""

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from flaxzoo.weights.digest import Stamp, read_stamp, sha256_of, stamp_path, write_stamp
from flaxzoo.weights.errors import DownloadError, NotFoundError
from flaxzoo.weights.lock import locked

logger = logging.getLogger('flaxzoo')


@dataclass(frozen=True)
class Copy:
    """The local copy of weights: where it is (None for those that never were in a file), and what is known of it."""

    path: Path | None
    stamp: Stamp


class _Damaged(Exception):
    """A cached file is not what it should be."""


def fetch_file(url: str, sha256: str = '', *, offline: bool | None = None, refresh: bool = False) -> Copy:
    """The local copy of the file at an http(s) URL; see `hub.fetch`."""
    from flaxzoo.weights.download import download

    path = cache_path(url)
    held, fault = _held(url, path, sha256)
    if held and not refresh and (sha256 or _at_commit(url)):
        return held
    if is_offline(offline):
        if held and not refresh:
            return held
        if fault:
            raise DownloadError(f'offline, and {fault}; with a network, refresh=True fetches it anew')
        raise NotFoundError(f'offline, and {url} is not in the cache; put the file at {path}')
    if fault:
        logger.warning('%s; it is fetched anew', fault)
    mirror = os.environ.get('FLAXZOO_WEIGHTS_MIRROR')
    source = f'{mirror.rstrip("/")}/{quote(path.relative_to(cache_dir()).as_posix())}' if mirror else url
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f'{path.name}.lock')) as alone:
            newer, _ = _held(url, path, sha256)
            if newer and newer != held:  # another process was faster
                return newer
            part = path.with_name(f'{path.name}.part' if alone else f'{path.name}.{os.getpid()}.part')
            stamp = download(source, path, sha256, part=part, known=held.stamp if held and not refresh else None)
            if stamp is None:
                return held
            write_stamp(path, stamp)
            return Copy(path, stamp)
    except OSError as error:
        raise DownloadError(f'{url} cannot be kept at {path}: {error.strerror or error}') from error
    except DownloadError as error:
        if not held or refresh:
            raise
        logger.warning('%s: taking the copy in the cache, of which it is not known whether it is the newest', error)
        return held


def is_offline(offline: bool | None) -> bool:
    """What was asked for, else what FLAXZOO_OFFLINE says."""
    return os.environ.get('FLAXZOO_OFFLINE', '') not in ('', '0') if offline is None else offline


def cache_dir() -> Path:
    """Where downloaded files are kept."""
    if os.environ.get('FLAXZOO_CACHE'):
        return Path(os.environ['FLAXZOO_CACHE']).expanduser()
    return _xdg_cache() / 'flaxzoo'


def cache_path(url: str) -> Path:
    """Where the file of a URL is kept: HOST/PATH, with a digest of the query if there is one.

    Raises:
      DownloadError: host or path have a part that cannot be the name of a file or folder.
    """
    parts = urlsplit(url)
    steps = [parts.netloc.lower().replace(':', '_'), *(step for step in unquote(parts.path).split('/') if step)]
    if any(not step.strip('. ') or re.search(r'[/\\\0]', step) for step in steps):
        raise DownloadError(f'{url!r} has a host or path that cannot be cached')
    if parts.query:
        steps[-1] = f'{hashlib.sha256(parts.query.encode()).hexdigest()[:12]}-{steps[-1]}'
    path = cache_dir().joinpath(*steps)
    if not path.is_relative_to(cache_dir()):  # on Windows a step like 'C:' is a drive
        raise DownloadError(f'{url!r} has a host or path that cannot be cached')
    return path


def _at_commit(url: str) -> bool:
    """Whether the URL is of a hub repository at a commit, so that what it names never changes."""
    return re.match(r'https://huggingface\.co/[^?]+/resolve/[0-9a-f]{40}/', url) is not None


def _held(url: str, path: Path, sha256: str) -> tuple[Copy | None, str]:
    """The copy in our cache, or in torch's if the hash is known; else what is wrong with ours, if there is one."""
    fault = ''
    for file in (path, _torch_path(path)) if sha256 else (path,):
        if not file.is_file():
            continue
        try:
            return Copy(file, _verified(url, file, path, sha256)), ''
        except _Damaged as error:
            if file == path:
                fault = str(error)
            else:
                logger.warning('%s', error)
    return None, fault


def _verified(url: str, file: Path, path: Path, sha256: str) -> Stamp:
    """The stamp of a local copy, which is hashed unless it is stamped already; the stamp is kept beside `path`."""
    from flaxzoo.weights.download import check_signature

    stamp = read_stamp(path)
    if stamp is None or not stamp.fits(file):
        digest = sha256_of(file)
        if stamp and stamp.sha256 != digest and not sha256:
            raise _Damaged(
                f'{file} is not what was downloaded: its SHA-256 is {digest}, not {stamp.sha256} (to use it as it is, '
                f'remove {stamp_path(path)})'
            )
        if not sha256:
            try:
                check_signature(file, url)
            except DownloadError as error:
                raise _Damaged(f'{file} is not what it should be: {error}') from None
        stamp = (stamp if stamp and stamp.sha256 == digest else Stamp(digest)).restamped(file)
        write_stamp(path, stamp)
    if not stamp.sha256.startswith(sha256.lower()):
        raise _Damaged(f'{file} is not used: its SHA-256 is {stamp.sha256}, which does not begin with {sha256}')
    return stamp


def _torch_path(path: Path) -> Path:
    """Where torch.hub would keep the file."""
    home = os.environ.get('TORCH_HOME')
    return (Path(home).expanduser() if home else _xdg_cache() / 'torch') / 'hub/checkpoints' / path.name


def _xdg_cache() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
