"""What a file or folder is that is not read, and how its weights can be had."""

import re
from collections.abc import Collection
from pathlib import Path

IN_JAX = 'restore it where it was written and write its variables with flaxzoo.save'
IN_TORCH = 'save the state_dict() of its module in torch'
IN_KERAS = 'load it in Keras; only weights of torch can be read'
# What a file begins with -> what it is, first match wins.
BEGINNINGS = (
    (rb'version https://git-lfs', 'a git-LFS pointer, not the file itself; run `git lfs pull` where it came from'),
    (rb'\s*(\xef\xbb\xbf)?\s*<', 'a web page (HTML or XML), probably an error message saved under this name; '
                                'download the file again'),
    (rb'\s*(\xef\xbb\xbf)?\s*[{\[]', 'a JSON file, not weights'),
    (rb'\x1f\x8b', 'gzip-compressed; unpack it first (gunzip, or tar -xzf)'),
    (rb'BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!', 'compressed; unpack it first'),
    (rb'(?s).{257}ustar', 'a tar archive; unpack it, or if torch < 0.1.10 wrote it, save it anew'),
    (rb'\x89HDF', f'an HDF5 file (Keras?), which is not supported; {IN_KERAS}'),
    (rb'(?s).{4}TFL3', 'a TFLite model, which is a program and not weights of torch'),
    (rb'\x08[\x01-\x20][\x12\x1a\x3a]', f'an ONNX model, which is a program; {IN_TORCH}'),
    (rb'\x93NUMPY', 'a single array (.npy); write a file of named ones with numpy.savez'),
    (rb'(?s)([\x81-\x8f]|\xde..)([\xa0-\xbf]|\xd9.)\w', f'a msgpack file, as flax.serialization writes it; {IN_JAX}'),
    (rb'GGUF', 'a GGUF file, which holds language models'),
    (rb'\x89PNG|\xff\xd8\xff|GIF8|RIFF', 'an image'),
)  # fmt: skip
# What is in a zip archive -> what it is.
ARCHIVES = (
    (r'.*\.weights\.h5', f'a Keras model; {IN_KERAS}'),
    (r'.*(serialized_exported_program\.json|archive_format)', f'a program of torch.export; {IN_TORCH}'),
    (r'.*\.(pth|pt|bin|safetensors|tar)', 'the file to read is in it; unpack it'),
)  # fmt: skip
# What is in a folder -> what it is.
FOLDERS = (
    (r'_METADATA|_CHECKPOINT_METADATA|manifest\.ocdbt|default', f'an orbax checkpoint; {IN_JAX}'),
    (r'saved_model\.pb|keras_metadata\.pb', 'a TensorFlow model; only weights of torch can be read'),
    (r'checkpoint|.*\.ckpt.*\.index', 'a TensorFlow checkpoint; only weights of torch can be read'),
    (r'data\.pkl|data', 'an unpacked file of torch.save; give the file itself'),
)


def describe_file(start: bytes) -> str:
    """What a file is that begins with these bytes."""
    for pattern, description in BEGINNINGS:
        if re.match(pattern, start):
            return description
    return f'not a file of torch.save, safetensors or numpy.savez; it begins with {start[:16]!r}'


def describe_archive(names: Collection[str]) -> str:
    """A clause about a zip archive with these entries."""
    return _first(ARCHIVES, names) or _holds(names)


def describe_folder(path: Path) -> str:
    """What a folder is."""
    names = sorted(inside.name for inside in path.iterdir())
    weights = [name for name in names if name.endswith(('.safetensors', '.pth', '.pt', '.bin', '.npz'))]
    if weights:
        return f'a folder, not a file; give one in it: {", ".join(weights[:8])}'
    return f'a folder, not a file{_first(FOLDERS, names) or _holds(names)}'


def _first(table: tuple[tuple[str, str], ...], names: Collection[str]) -> str:
    for pattern, description in table:
        if any(re.fullmatch(pattern, name) for name in names):
            return f': {description}'
    return ''


def _holds(names: Collection[str]) -> str:
    return f'; it holds {", ".join(name[:50] for name in list(names)[:4]) or "nothing"}'
