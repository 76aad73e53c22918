import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from train.augment import augment, normalise, random_resized_crop, resize_and_crop

RNG = np.random.default_rng(0)


def keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(1), count)


def test_pad_crop_cuts_every_shift_out_of_the_black_bordered_image():
    image = RNG.integers(1, 255, (5, 4, 3), dtype=np.uint8)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    shifts = {padded[i : i + 5, j : j + 4].tobytes(): (i, j) for i in range(5) for j in range(5)}
    out = np.asarray(augment(keys(600), jnp.asarray(np.broadcast_to(image, (600, *image.shape))), pad=2, flip=False))
    assert out.dtype == np.uint8
    assert {shifts[one.tobytes()] for one in out} == set(shifts.values())


def test_flip_mirrors_half_of_the_images():
    image = RNG.integers(0, 255, (3, 4, 3), dtype=np.uint8)
    out = np.asarray(augment(keys(400), jnp.asarray(np.broadcast_to(image, (400, *image.shape))), pad=0, flip=True))
    flipped = (out == image[:, ::-1]).all((1, 2, 3))
    assert (flipped | (out == image).all((1, 2, 3))).all()
    assert 150 < flipped.sum() < 250


def test_an_image_is_augmented_by_its_own_key_alone():
    images = jnp.asarray(RNG.integers(0, 255, (8, 6, 6, 1), dtype=np.uint8))
    whole = augment(keys(8), images, pad=2, flip=True)
    halves = [augment(keys(8)[part], images[part], pad=2, flip=True) for part in (slice(0, 4), slice(4, 8))]
    np.testing.assert_array_equal(whole, jnp.concatenate(halves))


def test_normalise_is_torchvisions():
    image = RNG.integers(0, 255, (2, 5, 7, 3), dtype=np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    tensor = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
    expected = functional.normalize(tensor, mean, std).permute(0, 2, 3, 1)
    np.testing.assert_allclose(normalise(jnp.asarray(image), mean, std, jnp.float32), expected, atol=1e-6)
    assert normalise(jnp.asarray(image), mean, std, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize('shape', [(30, 50, 3), (50, 30, 1), (24, 24, 3)])
def test_resize_and_crop_is_torchvisions(shape: tuple[int, int, int]):
    image = RNG.integers(0, 255, shape, dtype=np.uint8)
    squeezed = image[..., 0] if shape[-1] == 1 else image
    expected = functional.center_crop(functional.resize(functional.to_pil_image(squeezed), 24), [16, 16])
    out = resize_and_crop(image, 16, 24)
    assert out.shape == (16, 16, shape[-1])
    # Half a pixel of rounding may choose the neighbour, so the sizes differ by one at most and the picture stays.
    assert np.abs(out.squeeze().astype(int) - np.asarray(expected)).mean() < 20
    if shape[0] == shape[1]:
        np.testing.assert_array_equal(out.squeeze(), expected)


def test_a_crop_larger_than_the_resized_image_is_refused():
    with pytest.raises(ValueError, match='a crop of 32 pixels does not fit an image resized to 24'):
        resize_and_crop(np.zeros((40, 40, 3), np.uint8), 32, 24)


def test_random_resized_crop_covers_the_scale_and_keeps_to_the_image():
    # An image whose pixels say where they are: the crop's extent can be read off.
    rows, columns = np.meshgrid(np.arange(200), np.arange(240), indexing='ij')
    image = np.stack([rows, columns, columns * 0], -1).astype(np.uint8)
    areas = []
    for seed in range(200):
        crop = random_resized_crop(image, 32, (0.25, 1.0), np.random.default_rng(seed)).astype(int)
        assert crop.shape == (32, 32, 3)
        height, width = np.ptp(crop[..., 0]) * 32 / 31, np.ptp(crop[..., 1]) * 32 / 31
        areas.append(height * width / (200 * 240))
        assert 0.65 < width / height < 1.5
    assert 0.2 < min(areas) < 0.32
    assert max(areas) > 0.8
    assert 0.5 < np.mean(areas) < 0.7


def test_random_resized_crop_of_a_strip_takes_its_centre():
    strip = np.zeros((2, 400, 3), np.uint8)
    strip[:, 198:202] = 255
    out = random_resized_crop(strip, 8, (0.9, 1.0), np.random.default_rng(0))
    assert out.mean() > 200
