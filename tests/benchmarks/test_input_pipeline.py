"""What the comparison of input pipelines compares."""

import statistics

import numpy as np
import pytest
from PIL import Image

from benchmarks.input_pipeline import flaxzoo_batches, torch_batches, write_photographs


@pytest.fixture(scope='module')
def photographs(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp('photographs')
    write_photographs(root, 12)
    return root


def test_the_files_are_like_imagenets(photographs):
    paths = list(photographs.glob('train/*/*.jpg'))
    assert len(paths) == 12
    with Image.open(paths[0]) as image:
        assert (image.size, image.mode) == ((500, 375), 'RGB')
    assert 80e3 < statistics.mean(path.stat().st_size for path in paths) < 120e3


def test_both_sides_give_the_same_images_without_end(photographs):
    with flaxzoo_batches(photographs, 0, 4) as ours, torch_batches(photographs, 0, 4) as theirs:
        for _ in range(4):  # an epoch and a third
            batch, (images, labels) = next(ours), next(theirs)
            assert (batch['image'].shape, batch['image'].dtype) == ((4, 224, 224, 3), np.uint8)
            assert (images.shape, images.numpy().dtype) == ((4, 3, 224, 224), np.uint8)
            assert batch['label'].shape == labels.shape == (4,)
