"""Files that torch.save would not write, put together by hand, and the assertion that they are refused."""

import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

import flaxzoo

STORAGE = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ'
ELSEWHERE = (STORAGE % b'K\x04').replace(b'\x01\x00\x00\x000', b'\x04\x00\x00\x00../x')
ONES = b'(' + b'K\x01' * 99 + b't'
REBUILD = b'ctorch._utils\n_rebuild_tensor_v2\n('


def tensor(count=b'K\x04', offset=b'K\x00', shape=b'K\x04\x85', strides=b'K\x01\x85', storage=None) -> bytes:
    """The pickle of a tensor of four numbers, or of what the arguments say."""
    return REBUILD + (storage or STORAGE % count) + offset + shape + strides + b'\x89)tR'


def item(value: bytes) -> bytes:
    """The pickle of {'x': value}."""
    return b'\x80\x02}X\x01\x00\x00\x00x' + value + b's.'


def archive_of(path, content: bytes, method=zipfile.ZIP_STORED, **entries: bytes):
    with zipfile.ZipFile(path, 'w', method) as archive:
        archive.writestr('archive/data.pkl', content)
        archive.writestr('archive/data/0', np.arange(4, dtype=np.float32).tobytes())
        for name, data in entries.items():
            archive.writestr(f'archive/{name}', data)
    return path


def text(value: str) -> bytes:
    """The pickle of a string."""
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def refused(path, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(flaxzoo.WeightsError, match=message) as caught:
            flaxzoo.read_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
