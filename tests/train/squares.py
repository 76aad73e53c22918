"""Prepares a small TFDS data set in array_record format: `python squares.py DIR`.

A script of its own, because TFDS needs importlib_resources, which it does not install, for builders in packages.
"""

import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Squares(tfds.core.GeneratorBasedBuilder):
    """Grey squares, bright ones of class 'light'."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
                'label': tfds.features.ClassLabel(names=['dark', 'light']),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _: object) -> dict:
        return {'train': self._generate_examples(12), 'test': self._generate_examples(5)}

    def _generate_examples(self, count: int):
        for i in range(count):
            pixels = np.full((6 + i, 7, 3), 200 * (i % 2), np.uint8)
            yield i, {'image': Image.fromarray(pixels), 'label': i % 2}


if __name__ == '__main__':
    Squares(data_dir=sys.argv[1], file_format='array_record').download_and_prepare()
