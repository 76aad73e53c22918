import jax
import jax.numpy as jnp
import numpy as np
import torch
from torchvision.transforms import functional

from train.augment import augment, normalise

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
