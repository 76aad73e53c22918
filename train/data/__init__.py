"""Images behind one small interface; `open_dataset` is the only place that knows the kinds."""

from ml_collections import ConfigDict

from flaxzoo.registry import suggest
from train.data.source import DataError, Dataset

KINDS = ('digits', 'folder', 'tfds')


def open_dataset(config: ConfigDict) -> Dataset:
    """The images that `config.dataset` names: `digits`, `folder:PATH` or `tfds:NAME`.

    Raises:
      DataError: there is no such data set, or it is not what it should be; says what to do.
    """
    kind, _, rest = config.dataset.partition(':')
    # Each kind is imported when it is asked for: TFDS takes a second, and scikit-learn is only for the digits.
    if kind == 'digits' and not rest:
        from train.data.digits import open_digits

        return open_digits()
    if kind == 'folder' and rest:
        from train.data.folder import open_folder

        return open_folder(rest, config.exif_orientation)
    if kind == 'tfds' and rest:
        from train.data.tfds import open_tfds

        return open_tfds(rest, config.data_dir, config.exif_orientation)
    raise DataError(
        f'config.dataset is digits, folder:PATH or tfds:NAME, got {config.dataset!r}{suggest(kind, list(KINDS))}'
    )
