"""The image preparation that released weights were evaluated with: resize, crop, normalise, in PIL and numpy.

Equal to torchvision's `weights.transforms()`, antialiased resize included, up to the layout. How files of all kinds
become RGB is said in `flaxzoo.images`.
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from flaxzoo.weights import catalog
from flaxzoo.weights.errors import WeightsError
from flaxzoo.weights.hub import Repository, fetch
from flaxzoo.weights.own import stated_preset
from flaxzoo.weights.source import Source, parse, split

logger = logging.getLogger('flaxzoo')

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'lanczos')


@dataclass(frozen=True)
class Preset:
    """Prepares an image for a network: called on one, it returns (crop, crop, 3) float32.

    Attributes:
      resize: pixels of the shorter edge after resizing; the longer one keeps the proportion, rounded down.
      crop: pixels of the central square that is cut out.
      interpolation: 'nearest', 'bilinear', 'bicubic' or 'lanczos', antialiased when the image shrinks.
      mean, std: of the normalisation (value - mean) / std of values from 0 to 1, for red, green and blue.
      exif_orientation: turn photographs as their EXIF data say; torchvision does not.
    """

    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif_orientation: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f'interpolation must be one of {INTERPOLATIONS}, got {self.interpolation!r}')
        if not 0 < self.crop <= self.resize:
            raise ValueError(f'crop must be from 1 to resize, got crop={self.crop}, resize={self.resize}')

    def __call__(self, image: Any) -> np.ndarray:
        """The prepared image, (crop, crop, 3) float32.

        Args:
          image: a path, a PIL image, or a uint8 array (H, W, 3) or (H, W).

        Raises:
          ImageError: a ValueError; it cannot be read, or has neither 8 nor 16 bits a channel.
          TypeError: anything else.
          OSError: the file itself cannot be read.
        """
        values = self.pixels(image).astype(np.float32) / np.float32(255)
        return (values - np.float32(self.mean)) / np.float32(self.std)

    def scaled(self, crop: int) -> 'Preset':
        """The same for squares of `crop` pixels, which show the same share of the image."""
        return dataclasses.replace(self, crop=crop, resize=round(self.resize * crop / self.crop))

    def pixels(self, image: Any) -> np.ndarray:
        """The image before it is normalised, (crop, crop, 3) uint8."""
        from flaxzoo import images

        if isinstance(image, str | os.PathLike):
            with images.opened(image) as file:
                return self.pixels(file)
        image = _pil(image)
        if self.exif_orientation:
            image = images.upright(image)
        rgb = images.converted(image, 'RGB')
        return np.asarray(images.resized_centre(rgb, self.resize, self.crop, self.interpolation))


def transforms(
    network: nn.Module | str, weights: str = catalog.DEFAULT, *, offline: bool | None = None, refresh: bool = False
) -> Preset:
    """The preparation of images for released weights; with it, `flaxzoo.load` gives the logits that were released.

    Networks that torchvision builds with `transform_input` (googlenet, inception_v3) get it from this normalisation.

    Args:
      network: what `flaxzoo.load` returned; or a name as in `flaxzoo.load`, or name and tag as one:
        'resnet50.IMAGENET1K_V2'.
      weights: for a name, a tag of the catalogue; 'hf-hub:OWNER/NAME[@REVISION]', whose config.json is fetched; or a
        file of `flaxzoo.save(path, variables, model=...)`.
      offline: use cached files only; None follows FLAXZOO_OFFLINE.
      refresh: fetch config.json even if it is in the cache.

    Raises:
      WeightsError: the weights are not in the catalogue, or their config.json describes another preparation; or nothing
        is known of how images were prepared for the weights of the network.
    """
    if isinstance(network, nn.Module):
        if network.preset is None:
            raise WeightsError(
                f'nothing is known of how images are prepared for this {type(network).__name__}: it was not loaded '
                'from a release. Name one: flaxzoo.transforms(name, tag), or write flaxzoo.preset.Preset(...)'
            )
        return network.preset
    source = parse(*split(network, weights))
    if source.kind == 'hub':
        return _of_hub(source.place, offline, refresh)
    preset = preset_of(source, source.fetch().path if source.kind == 'file' else None)
    if preset:
        return preset
    raise WeightsError(f'nothing is known of how images are prepared for {source.place}; name a release by its tag')


def preset_of(
    source: Source, path: Path | None = None, offline: bool | None = None, refresh: bool = False
) -> Preset | None:
    """The preparation that belongs to weights, whose file is at `path`; None for those of which none is known."""
    if source.release:
        return _of_release(source.release)
    stated = stated_preset(path) if path else {}
    if stated:
        return _of_file(path, stated)
    if source.kind != 'hub':
        return None
    try:
        return _of_hub(source.place, offline, refresh)
    except WeightsError as error:
        logger.info('it is not known how images are prepared: %s', error)
        return None


def _of_release(release: catalog.Release) -> Preset:
    return Preset(release.resize, release.crop, release.interpolation, *release.normalisation)


def _of_file(path: Path, stated: Mapping[str, Any]) -> Preset:
    """The preset in the metadata of a file of `flaxzoo.save(path, variables, model=model)`."""
    try:
        return Preset(**stated)
    except (TypeError, ValueError) as error:
        raise WeightsError(f'{path}: its metadata does not describe how images are prepared: {error}') from error


def _of_hub(place: str, offline: bool | None, refresh: bool) -> Preset:
    """The preset in timm's config.json."""
    path = fetch(Repository.parse(place).sibling('config.json'), offline=offline, refresh=refresh).path
    try:
        config = json.loads(path.read_bytes())
        config = config.get('pretrained_cfg', config)
        size = config['input_size'][-1]
        if config.get('crop_mode', 'center') != 'center':
            raise WeightsError(f'{place}: the crop mode {config["crop_mode"]!r} is not supported')
        mean, std = (tuple(map(float, config[key])) for key in ('mean', 'std'))
        return Preset(math.floor(size / config['crop_pct']), size, config['interpolation'], mean, std)
    except WeightsError:
        raise
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise WeightsError(f'{place}: its config.json does not describe how images are prepared') from error


def _pil(image: Any) -> Any:
    """A PIL image, or one of an array."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise TypeError(
            f'expected a path, a PIL image or a uint8 array (H, W, 3) or (H, W), got {array.dtype} {array.shape}'
        )
    return Image.fromarray(array)
