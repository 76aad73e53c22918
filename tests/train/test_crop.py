import io
import random

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from train.data.crop import RATIO, Box, random_crop_box, resized_centre, resized_crop
from train.data.jpeg import decode_first_rows

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('shape', [(30, 50, 3), (50, 30, 1), (24, 24, 3), (31, 47, 3), (7, 100, 1)])
def test_resized_centre_is_torchvisions(shape: tuple[int, int, int]):
    image = Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8).squeeze())
    expected = functional.center_crop(functional.resize(image, 24), [16, 16])
    out = resized_centre(image, image.mode, 16, 24, 'bilinear')
    assert out.shape == (16, 16, shape[-1])
    np.testing.assert_array_equal(out.squeeze(), expected)


def test_random_crop_boxes_are_distributed_as_torchvisions():
    size, scale, count = (200, 240), (0.25, 1.0), 4000
    ours = np.array([random_crop_box(*size, scale, random.Random(seed)) for seed in range(count)])
    torch.manual_seed(0)
    blank = torch.zeros(3, *size)
    draws = [transforms.RandomResizedCrop.get_params(blank, list(scale), list(RATIO)) for _ in range(count)]
    theirs = np.array([(left, top, left + width, top + height) for top, left, height, width in draws])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] <= size[::-1]).all()
    for measure in (area, log_ratio, lambda boxes: boxes[:, 0], lambda boxes: boxes[:, 1]):
        # Two samples of 4,000 from one distribution differ by more than 0.044 once in a thousand times.
        assert scipy.stats.ks_2samp(measure(ours), measure(theirs)).statistic < 0.044


def area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def log_ratio(boxes: np.ndarray) -> np.ndarray:
    return np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))


def test_the_crop_of_a_strip_is_its_centre():
    assert random_crop_box(2, 400, (0.9, 1.0), random.Random(0)) == (198, 0, 201, 2)
    assert random_crop_box(400, 2, (0.9, 1.0), random.Random(0)) == (0, 198, 2, 201)


@pytest.mark.parametrize(('mode', 'shape'), [('RGB', (60, 90, 3)), ('L', (60, 90))])
@pytest.mark.parametrize('box', [(10, 5, 80, 50), (20, 20, 30, 32), (3, 4, 35, 36)])
def test_a_resized_crop_is_torchvisions_inside_its_border(mode: str, shape: tuple[int, ...], box: Box):
    image = Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8))
    left, top, right, bottom = box
    expected = np.asarray(functional.resized_crop(image, top, left, bottom - top, right - left, [32, 32]))
    out = resized_crop(image, mode, box, 32)
    assert out.shape == (32, 32, len(mode))
    inner = slice(3, -3)
    np.testing.assert_array_equal(out.squeeze()[inner, inner], expected[inner, inner])
    np.testing.assert_array_equal(
        resized_crop(image, mode, (0, 0, 90, 60), 32).squeeze(), functional.resize(image, [32, 32])
    )


@pytest.mark.parametrize(
    ('box', 'size', 'decoded'),
    [
        ((0, 0, 400, 300), 301, (400, 300)),
        ((101, 51, 229, 179), 64, (200, 150)),
        ((101, 51, 228, 179), 64, (400, 300)),  # 127 pixels are fewer than 2 x 64
        ((101, 51, 229, 178), 64, (400, 300)),
        ((5, 3, 397, 290), 64, (100, 75)),
        ((5, 3, 397, 290), 8, (50, 38)),  # an eighth is the least
    ],
)
def test_a_jpeg_file_is_decoded_no_finer_than_the_crop_needs(box: Box, size: int, decoded: tuple[int, int]):
    rows, columns = np.meshgrid(np.arange(300), np.arange(400), indexing='ij')
    # Smooth pictures keep their pixels at any resolution, and these say where they are.
    pixels = np.stack([rows * 0.8, columns * 0.6, 120 + 80 * np.sin(rows / 40) * np.cos(columns / 30)], -1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, 'JPEG', quality=95)
    with Image.open(file) as image:
        out = resized_crop(image, 'RGB', box, size)
        assert image.size == decoded
    with Image.open(file) as image:
        expected = image.convert('RGB').resize((size, size), Image.Resampling.BILINEAR, box)
    difference = np.abs(out.astype(int) - np.asarray(expected))
    assert difference.mean() < 1.5
    assert difference.max() < 12


def jpeg(shape: tuple[int, ...], **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8)).save(file, 'JPEG', quality=60, **options)
    return file.getvalue()


JPEG = {
    '4:4:4': jpeg((90, 70, 3), subsampling=0),
    '4:2:2': jpeg((90, 70, 3), subsampling=1),
    '4:2:0': jpeg((90, 70, 3), subsampling=2),
    'grey': jpeg((90, 70)),
    'progressive': jpeg((90, 70, 3), progressive=True),
    'restart markers': jpeg((90, 70, 3), restart_marker_blocks=3),
    'progressive, restart markers': jpeg((90, 70, 3), progressive=True, restart_marker_rows=1),
    'with a preview': jpeg((90, 70, 3), exif=b'Exif\0\0' + jpeg((16, 16, 3))),
}


@pytest.mark.parametrize('encoded', JPEG.values(), ids=JPEG)
@pytest.mark.parametrize('size', [4, 10, 30])
def test_rows_below_the_crop_make_no_difference(monkeypatch, encoded: bytes, size: int):
    boxes = [random_crop_box(90, 70, (0.05, 1), random.Random(seed)) for seed in range(40)]
    crops = []
    for rows in (decode_first_rows, lambda image, rows: None):
        monkeypatch.setattr('train.data.crop.decode_first_rows', rows)
        crops.append([resized_crop(Image.open(io.BytesIO(encoded)), 'RGB', box, size) for box in boxes])
    np.testing.assert_array_equal(*crops)


@pytest.mark.parametrize('encoded', JPEG.values(), ids=JPEG)
def test_rows_below_the_crop_are_not_decoded(encoded: bytes):
    before = bytes(bytearray(encoded))
    image, first = (Image.open(io.BytesIO(encoded)) for _ in range(2))
    decode_first_rows(first, 33)
    np.testing.assert_array_equal(np.asarray(first)[:31], np.asarray(image)[:31])
    assert not np.asarray(first)[33:].any()
    assert np.asarray(image)[33:].any()
    assert encoded == before


@pytest.mark.parametrize('shape', [(90, 70, 3), (90, 70)])
def test_what_is_missing_below_the_crop_is_not_missed(shape: tuple[int, ...]):
    encoded = jpeg(shape)
    start, whole = (Image.open(io.BytesIO(encoded[: len(encoded) * 4 // 5])) for _ in range(2))
    decode_first_rows(start, 33)
    start.load()
    with pytest.raises(OSError, match='truncated'):
        whole.load()


def test_a_jpeg_file_of_an_unusual_layout_is_read_whole():
    """Fill bytes before a marker are allowed; nobody writes them."""
    encoded = JPEG['4:2:0']
    filled = encoded[:2] + b'\xff\xff' + encoded[2:]
    image, plain = Image.open(io.BytesIO(filled)), Image.open(io.BytesIO(encoded))
    decode_first_rows(image, 33)
    np.testing.assert_array_equal(image, plain)


def test_a_png_file_is_read_whole():
    file = io.BytesIO()
    pixels = RNG.integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, 'PNG')
    image = Image.open(file)
    decode_first_rows(image, 5)
    np.testing.assert_array_equal(image, pixels)


def test_files_of_other_modes_become_what_is_asked_for():
    grey = Image.fromarray(RNG.integers(0, 255, (40, 40), dtype=np.uint8))
    for image in (grey, grey.convert('P'), grey.convert('RGBA')):
        expected = np.asarray(image.convert('RGB').resize((16, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(resized_crop(image, 'RGB', (0, 0, 40, 40), 16), expected)
        assert resized_crop(image, 'L', (0, 0, 40, 40), 16).shape == (16, 16, 1)
