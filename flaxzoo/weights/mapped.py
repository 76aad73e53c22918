"""A file's bytes as memory-mapped numpy arrays, checked against the file's length."""

import math
import mmap
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from flaxzoo.weights.errors import WeightsError

CHUNK = 1 << 20
LOCAL_HEADER = struct.Struct('<4s22xHH')  # signature, ..., lengths of the name and of the extra field


class MappedFile:
    """An open file. Arrays from it stay valid when it is closed, can be written to, and never change the file."""

    def __init__(self, path: Path):
        self.file = path.open('rb')
        self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.size = len(self.map)

    def __enter__(self) -> 'MappedFile':
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def view(self, start: int = 0, count: int | None = None) -> memoryview:
        """`count` bytes from `start`, all there are by default."""
        self.check(start, self.size - start if count is None else count)
        return memoryview(self.map)[start : None if count is None else start + count]

    def array(self, start: int, count: int, dtype: np.dtype) -> np.ndarray:
        """`count` elements from byte `start`, shape (count,); unaligned where the file does not align them."""
        self.check(start, count * dtype.itemsize)
        return np.frombuffer(self.map, dtype, count, start) if count else np.empty(0, dtype)

    def crc32(self, start: int, count: int) -> int:
        """The checksum of `count` bytes from `start`, read past the map so that they do not stay in memory."""
        self.check(start, count)
        self.file.seek(start)
        checksum = 0
        while count and (chunk := self.file.read(min(CHUNK, count))):
            checksum = zlib.crc32(chunk, checksum)
            count -= len(chunk)
        return checksum

    def check(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.size:
            raise WeightsError(
                f'the file is truncated or damaged: it refers to bytes {start} to {start + count} of {self.size}'
            )


class Archive:
    """A zip file whose entries are stored as they are, as torch.save and np.savez write them.

    Raises:
      WeightsError: the directory is damaged, or an entry is compressed, encrypted, doubled or overlaps others.
    """

    def __init__(self, file: MappedFile):
        self.file = file
        try:
            with zipfile.ZipFile(file.file) as archive:
                entries = archive.infolist()
        except Exception as error:  # zipfile raises many types on damaged directories
            raise WeightsError(f'the zip archive is truncated or damaged ({error})') from error
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) != len(entries):
            raise WeightsError('refused: the zip archive has two entries of one name')
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise WeightsError(
                    f'refused: {entry.filename!r} in the archive is compressed; torch.save and np.savez store '
                    'entries as they are'
                )
            if entry.flag_bits & 1:
                raise WeightsError(f'refused: {entry.filename!r} in the archive is encrypted')
        if sum(entry.file_size for entry in entries) > file.size:
            raise WeightsError('refused: the entries of the zip archive are larger than the file')
        # torch.serialization.set_crc32_options(False) writes 0 for every entry.
        self.checksums = any(entry.CRC for entry in entries)
        self.found: dict[str, tuple[int, int]] = {}

    def find(self, name: str) -> tuple[int, int]:
        """First byte and length of an entry, whose checksum has been verified."""
        if name in self.found:
            return self.found[name]
        if name not in self.entries:
            raise WeightsError(f'the archive is damaged: it has no entry {name!r}')
        entry = self.entries[name]
        header = self.file.view(entry.header_offset, LOCAL_HEADER.size)
        signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
        if signature != b'PK\3\4':
            raise WeightsError(f'the archive is damaged: there is no entry where {name!r} should be')
        checksum = self.file.crc32(start, entry.file_size)
        if self.checksums and checksum != entry.CRC:
            raise WeightsError(
                f'the file is damaged: the checksum of {name!r} is {checksum:08x}, expected {entry.CRC:08x}'
            )
        self.found[name] = start, entry.file_size
        return self.found[name]

    def view(self, name: str) -> memoryview:
        """The bytes of an entry."""
        return self.file.view(*self.find(name))


def strided(
    values: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], limit: int
) -> np.ndarray:
    """The view of `values: (N,)` that starts at element `offset` and has these strides, in elements.

    Raises:
      WeightsError: the view leaves `values`, or repeats them (by strides of 0) to more than `limit` bytes.
    """
    counts = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > 32 or any(type(n) is not int or n < 0 for n in counts):
        raise WeightsError('the file is damaged: a tensor has an impossible shape')
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= len(values):
        raise WeightsError(f'the file is damaged: a tensor of shape {shape} needs {last + 1} values of {len(values)}')
    if math.prod(shape) * values.itemsize > limit:
        raise WeightsError(f'refused: a tensor of shape {shape} is larger than the file')
    if not math.prod(shape):
        return np.empty(shape, values.dtype)
    steps = tuple(stride * values.itemsize for stride in strides)
    raw = values[offset:].view(f'V{values.itemsize}')  # as_strided does not know every dtype of ml_dtypes
    return np.lib.stride_tricks.as_strided(raw, shape, steps).view(values.dtype)
