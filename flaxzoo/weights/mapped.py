"""A file's bytes as memory-mapped numpy arrays, checked against the file's length."""

import logging
import math
import mmap
import os
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flaxzoo.weights.errors import WeightsError

logger = logging.getLogger('flaxzoo')

CHUNK = 1 << 20
MOST_DIMENSIONS = 32
UTF_8 = 1 << 11  # the flag of a zip file's entry whose name is not in the code page 437
LOCAL_HEADER = struct.Struct('<4s22xHH')  # signature, ..., lengths of the name and of the extra field


class MappedFile:
    """An open file. Arrays from it can be written to, which never changes the file; it is closed when none needs it."""

    def __init__(self, path: Path):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0))
        weakref.finalize(self, os.close, descriptor)
        self.file = open(descriptor, 'rb', closefd=False)  # noqa: SIM115
        self.path = path
        self.map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        self.size = len(self.map)

    def view(self, start: int = 0, count: int | None = None) -> memoryview:
        """`count` bytes from `start`, all there are by default."""
        self.check(start, self.size - start if count is None else count)
        return memoryview(self.map)[start : None if count is None else start + count]

    def array(self, start: int, count: int, dtype: np.dtype) -> np.ndarray:
        """`count` elements from byte `start`, shape (count,); unaligned where the file does not align them."""
        self.check(start, count * dtype.itemsize)
        return np.frombuffer(self.map, dtype, count, start) if count else np.empty(0, dtype)

    def chunks(self, start: int, count: int) -> Iterator[bytes]:
        """`count` bytes from `start`, read past the map so that they do not stay in memory."""
        self.check(start, count)
        self.file.seek(start)
        while count and (chunk := self.file.read(min(CHUNK, count))):
            yield chunk
            count -= len(chunk)

    def crc32(self, start: int, count: int) -> int:
        """The checksum of `count` bytes from `start`."""
        checksum = 0
        for chunk in self.chunks(start, count):
            checksum = zlib.crc32(chunk, checksum)
        return checksum

    def check(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.size:
            raise WeightsError(
                f'the file is truncated or damaged: it refers to bytes {start} to {start + count} of {self.size}'
            )


class Archive:
    """A zip file of entries that are stored as they are, as torch.save and np.savez write them.

    Raises:
      WeightsError: the directory is damaged, or entries have the same name or overlap.
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
        if sum(entry.compress_size for entry in entries) > file.size:
            raise WeightsError('refused: the entries of the zip archive are larger than the file')
        # torch.serialization.set_crc32_options(False) writes 0 for every entry.
        self.checksums = any(entry.CRC for entry in entries)
        if not self.checksums and any(entry.file_size for entry in entries):
            logger.warning('%s: the archive has no checksums, so that damage to its numbers goes unnoticed', file.path)
        self.found: dict[str, tuple[int, int]] = {}

    def find(self, name: str) -> tuple[int, int]:
        """First byte and length of an entry, whose checksum has been verified."""
        if name in self.found:
            return self.found[name]
        if name not in self.entries:
            raise WeightsError(f'the archive is damaged: it has no entry {name!r}')
        entry = self.entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise WeightsError(
                f'refused: {name[:200]!r} in the archive is compressed; torch.save and np.savez store entries as they '
                'are'
            )
        if entry.flag_bits & 1:
            raise WeightsError(f'refused: {name[:200]!r} in the archive is encrypted')
        header = self.file.view(entry.header_offset, LOCAL_HEADER.size)
        signature, name_length, extra_length = LOCAL_HEADER.unpack(header)
        start = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
        # The name is there twice, without a checksum.
        encoded = entry.orig_filename.encode('utf-8' if entry.flag_bits & UTF_8 else 'cp437')
        written = self.file.view(entry.header_offset + LOCAL_HEADER.size, name_length)
        if signature != b'PK\3\4' or written != encoded:
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
    check_shape(shape, values.itemsize)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in (offset, *strides)):
        raise WeightsError('the file is damaged: a tensor has impossible strides')
    if not math.prod(shape):
        return np.empty(shape, values.dtype)
    strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides, strict=True))
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(values):
        raise WeightsError(f'the file is damaged: a tensor of shape {shape} needs {last + 1} values of {len(values)}')
    if math.prod(shape) * values.itemsize > limit:
        raise WeightsError(f'refused: a tensor of shape {shape} is larger than the file')
    steps = tuple(stride * values.itemsize for stride in strides)
    raw = values[offset:].view(f'V{values.itemsize}')  # as_strided does not know every dtype of ml_dtypes
    return np.lib.stride_tricks.as_strided(raw, shape, steps).view(values.dtype)


def check_shape(shape: tuple[int, ...], itemsize: int) -> None:
    """Raises WeightsError for what cannot be the shape of an array, not even of one without elements."""
    if len(shape) > MOST_DIMENSIONS or any(type(n) is not int or not 0 <= n < 1 << 63 for n in shape):
        raise WeightsError('the file is damaged: a tensor has an impossible shape')
    if math.prod(max(n, 1) for n in shape) * itemsize >= 1 << 63:
        raise WeightsError(f'the file is damaged: a tensor has the impossible shape {shape}')
