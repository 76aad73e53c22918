"""The SHA-256 of files, and the stamp beside a cached file that spares hashing it at every load."""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Stamp:
    """What is known of a cached file; kept as JSON in NAME.stamp.

    Attributes:
      sha256: of the whole file, 64 digits.
      size, mtime_ns: of the file when it was hashed. While they stay, the digest is taken to be the same.
      url: where the file was downloaded from, without its query, which may hold secrets; '' if it was put there.
      etag, modified: the server's ETag and Last-Modified, by which to ask whether the file is still the newest.
      revision: the commit of a hub repository that the server stated.
    """

    sha256: str
    size: int = 0
    mtime_ns: int = 0
    url: str = ''
    etag: str = ''
    modified: str = ''
    revision: str = ''

    def fits(self, path: Path) -> bool:
        """Whether the file is as it was when it was hashed."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)

    def restamped(self, path: Path) -> 'Stamp':
        """The stamp of the same content after its file was touched or renamed."""
        status = path.stat()
        return replace(self, size=status.st_size, mtime_ns=status.st_mtime_ns)


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def stamp_path(path: Path) -> Path:
    """Where the stamp of a cached file is."""
    return path.with_name(f'{path.name}.stamp')


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of a cached file; None if there is none that can be read."""
    try:
        stamp = Stamp(**json.loads(stamp_path(path).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    valid = all(isinstance(value, int if name in ('size', 'mtime_ns') else str) for name, value in vars(stamp).items())
    return stamp if valid else None


def write_stamp(path: Path, stamp: Stamp) -> None:
    """Keeps the stamp of a cached file. In a cache that cannot be written to, the file is hashed again next time."""
    target = stamp_path(path)
    partial = target.with_name(f'{target.name}.{os.getpid()}')
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(stamp), indent=1) + '\n')
        partial.replace(target)
