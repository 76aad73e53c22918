"""The 1,797 handwritten digits that scikit-learn ships (UCI's optical recognition test set), 8x8 pixels."""

import dataclasses
import hashlib
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from train.data.source import Dataset, Example, View, as_image


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A source in memory. images: uint8 (N, H, W, C); labels: (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {'image': self.images[index], 'label': int(self.labels[index])}

    def read(self, index: int, view: View) -> Example:
        return {'image': view(*as_image(self.images[index])), 'label': int(self.labels[index])}

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for array in (self.images, self.labels):
            digest.update(f'{array.dtype.str} {array.shape}'.encode())
            digest.update(np.ascontiguousarray(array))
        return {'images': len(self), 'sha256': digest.hexdigest()}

    def files(self) -> tuple[()]:
        return ()


def open_digits() -> Dataset:
    """Every fifth image of each digit is held out: 1,433 to learn from, 364 to test, always the same ones."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # the file's values are 0 to 16
    held_out = np.zeros(len(images), bool)
    for digit in range(10):
        held_out[np.flatnonzero(digits.target == digit)[::5]] = True
    return Dataset(
        train=Arrays(images[~held_out], digits.target[~held_out]),
        held_out=Arrays(images[held_out], digits.target[held_out]),
        class_names=tuple(str(name) for name in digits.target_names),
        kind='digits',
    )
