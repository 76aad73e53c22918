"""Data sets that TensorFlow Datasets has prepared as array_record; TensorFlow itself is not needed to read them."""

import dataclasses
from typing import Any

import tensorflow_datasets as tfds

from train.data.source import DataError, Dataset, Example, View, decode, whole

HELD_OUT = ('test', 'validation')


@dataclasses.dataclass(frozen=True)
class Records:
    """A source of records whose images are decoded when they are asked for. name: for messages."""

    records: Any
    name: str
    mode: str
    exif_orientation: bool = False

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        return self.read(index, whole)

    def read(self, index: int, view: View) -> Example:
        record = self.records[index]
        image = decode(record['image'], f'image {index} of {self.name}', self.mode, view, self.exif_orientation)
        return {'image': image, 'label': int(record['label'])}

    def identity(self) -> dict[str, Any]:
        return {'images': len(self)}

    def files(self) -> tuple[()]:
        return ()


def open_tfds(name: str, data_dir: str, exif_orientation: bool = False) -> Dataset:
    """The data set `name` (`cifar10`, `imagenet2012`, with `:VERSION` if wanted) below `data_dir`.

    Held out is the test split or, if the test split has no labels or there is none, the validation split.

    Raises:
      DataError: the data set is not prepared in array_record format, or holds no images with labels.
    """
    builder = _builder(name, data_dir)
    features = builder.info.features
    if not {'image', 'label'} <= set(features):
        raise DataError(f'tfds:{name} has no image and label; its features are {", ".join(features)}')
    splits = builder.info.splits
    held_out = next((s for s in _held_out_names(name) if s in splits), None)
    if 'train' not in splits or held_out is None:
        raise DataError(f'tfds:{name} needs a train and a test or validation split; it has {", ".join(splits)}')
    mode = 'L' if features['image'].shape[-1] == 1 else 'RGB'
    raw = {'image': tfds.decode.SkipDecoding()}
    train, test = (
        Records(builder.as_data_source(split, decoders=raw), f'tfds:{name} {split}', mode, exif_orientation)
        for split in ('train', held_out)
    )
    # The version stands for the records, which nothing changes once they are prepared.
    return Dataset(train, test, tuple(features['label'].names), f'tfds:{builder.info.full_name}')


def _held_out_names(name: str) -> tuple[str, ...]:
    # ImageNet's test labels are not public: -1 in TFDS.
    return HELD_OUT[::-1] if name.startswith('imagenet') else HELD_OUT


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, file_format='array_record')
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        raise DataError(f'TFDS knows no data set {name!r}: {str(error).splitlines()[0]}') from error
    if not builder.data_path.exists():
        raise DataError(
            f'tfds:{name} is not prepared in {builder.data_path}; prepare it once, with TensorFlow where TFDS asks for '
            f"it: tfds.builder({name!r}, data_dir={data_dir or None!r}, file_format='array_record')"
            '.download_and_prepare()'
        )
    return builder
