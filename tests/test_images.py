"""Files of all kinds: the pixels that torchvision's ImageFolder gives, or one error that names the file."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.transforms.functional
from PIL import Image
from torchvision.datasets.folder import pil_loader

from flaxzoo import images
from flaxzoo.preset import Preset

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREYS = np.linspace(0, 65535, 12 * 17).astype(np.uint16).reshape(12, 17)
PRESET = Preset(10, 8, 'bilinear', (0.5,), (0.5,))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(values: np.ndarray, bits: int, photometric: int = 1) -> bytes:
    """An uncompressed TIFF of greys, which Pillow does not write: `bits` a value, packed; photometric 0: 0 is white."""
    rows = (''.join(f'{value:0{bits}b}' for value in row) for row in values)
    packed = b''.join(int(row.ljust(-(-len(row) // 8) * 8, '0'), 2).to_bytes(-(-len(row) // 8)) for row in rows)
    data = values.astype('<u2').tobytes() if bits == 16 else packed
    height, width = values.shape
    shorts = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b''.join(struct.pack('<HHIHH', tag, 3, 1, value, 0) for tag, value in shorts.items())
    return b'II' + struct.pack('<HI', 42, 8 + len(data)) + data + struct.pack('<H', len(shorts)) + entries + bytes(4)


def rgb(file: bytes | Path, **options) -> np.ndarray:
    with images.opened(file, **options) as image:
        return np.asarray(images.converted(image, 'RGB'))


IMAGE = Image.fromarray(PIXELS)
PALETTE = IMAGE.quantize(20)
ALPHA = Image.merge('RGBA', (*IMAGE.split(), Image.fromarray(PIXELS[..., 0])))
TURNED = Image.Exif()
TURNED[images.ORIENTATION] = 6
KINDS = {
    'jpeg': encoded(IMAGE, 'JPEG'),
    'progressive jpeg': encoded(IMAGE, 'JPEG', progressive=True),
    'grey jpeg': encoded(IMAGE.convert('L'), 'JPEG'),
    'cmyk jpeg': encoded(IMAGE.convert('CMYK'), 'JPEG'),
    'turned jpeg': encoded(IMAGE, 'JPEG', exif=TURNED),
    'png': encoded(IMAGE, 'PNG'),
    '1 bit': encoded(IMAGE.convert('1'), 'PNG'),
    '2 bits': encoded(IMAGE.quantize(4), 'PNG', bits=2),
    'palette': encoded(PALETTE, 'PNG'),
    'palette, a transparent colour': encoded(PALETTE, 'PNG', transparency=3),
    'palette, alpha': encoded(PALETTE, 'PNG', transparency=bytes(range(20))),
    'a transparent colour': encoded(IMAGE, 'PNG', transparency=tuple(map(int, PIXELS[0, 0]))),
    'alpha': encoded(ALPHA, 'PNG'),
    'grey and alpha': encoded(ALPHA.convert('LA'), 'PNG'),
    'animated png': encoded(IMAGE, 'PNG', save_all=True, append_images=[IMAGE.rotate(90)]),
    'webp': encoded(IMAGE, 'WEBP'),
    'webp, alpha': encoded(ALPHA, 'WEBP', lossless=True),
    'bmp': encoded(IMAGE, 'BMP'),
    'animated gif': encoded(PALETTE, 'GIF', save_all=True, append_images=[PALETTE.rotate(90)]),
    'tiff': encoded(IMAGE, 'TIFF', compression='tiff_lzw'),
    'cmyk tiff': encoded(IMAGE.convert('CMYK'), 'TIFF'),
    'turned tiff': encoded(IMAGE, 'TIFF', exif=TURNED),
    'two pages': encoded(IMAGE, 'TIFF', save_all=True, append_images=[IMAGE.rotate(90)]),
    'ppm': encoded(IMAGE, 'PPM'),
    'pgm': encoded(IMAGE.convert('L'), 'PPM'),
}


@pytest.mark.parametrize('encoded', KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings('ignore:Palette images with Transparency:UserWarning')  # torchvision's
def test_pixels_are_torchvisions(tmp_path: Path, encoded: bytes):
    path = tmp_path / 'a.jpg'
    path.write_bytes(encoded)
    expected = pil_loader(str(path))
    np.testing.assert_array_equal(rgb(path), expected)
    np.testing.assert_array_equal(PRESET(path), PRESET(expected))
    with images.opened(path) as image:
        np.testing.assert_array_equal(images.converted(image, 'L'), expected.convert('L'))
    images.check_header(path)


def test_no_warning_is_given_of_what_is_as_it_should_be():
    rgb(KINDS['palette, alpha'])  # pytest makes warnings errors


@pytest.mark.parametrize(
    ('encoded', 'expected'),
    {
        'png': (encoded(Image.fromarray(GREYS), 'PNG'), GREYS >> 8),
        'tiff': (encoded(Image.fromarray(GREYS), 'TIFF'), GREYS >> 8),
        'pgm': (encoded(Image.fromarray(GREYS), 'PPM'), GREYS >> 8),
        '12 bits': (tiff(GREYS >> 4, 12), GREYS >> 8),
        'zero is white': (tiff(GREYS, 16, photometric=0), 255 - (GREYS >> 8)),
    }.values(),
    ids=['png', 'tiff', 'pgm', '12 bits', 'zero is white'],
)
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_greys_of_more_than_8_bits_are_scaled(encoded: bytes, expected: np.ndarray, mode: str):
    with images.opened(encoded) as image:
        out = np.asarray(images.converted(image, mode))
    np.testing.assert_array_equal(out, np.stack([expected] * 3, -1) if mode == 'RGB' else expected)
    with images.opened(encoded) as image:
        np.testing.assert_array_equal(PRESET.pixels(image), PRESET.pixels(expected.astype(np.uint8)))


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
def test_photographs_are_turned_if_asked(tmp_path: Path, orientation: int, kind: str):
    exif, path = Image.Exif(), tmp_path / 'a'
    exif[images.ORIENTATION] = orientation
    path.write_bytes(encoded(IMAGE, kind, exif=exif))
    lying = np.asarray(pil_loader(str(path)))
    upright = {
        1: lying,
        2: lying[:, ::-1],
        3: lying[::-1, ::-1],
        4: lying[::-1],
        5: lying.transpose(1, 0, 2),
        6: np.rot90(lying, -1),
        7: lying[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(lying),
    }[orientation]
    np.testing.assert_array_equal(rgb(path), lying)
    np.testing.assert_array_equal(rgb(path, exif_orientation=True), upright)
    turning = Preset(10, 8, 'bilinear', (0.5,), (0.5,), exif_orientation=True)
    np.testing.assert_array_equal(turning.pixels(path), PRESET.pixels(upright.copy()))
    with Image.open(path) as image:
        np.testing.assert_array_equal(turning.pixels(image), PRESET.pixels(upright.copy()))


def test_damaged_exif_data_say_nothing():
    damaged = encoded(IMAGE, 'JPEG', exif=b'Exif\0\0MM\0*\xff\xff')
    np.testing.assert_array_equal(rgb(damaged, exif_orientation=True), rgb(damaged))


PNG = KINDS['png']
BAD = {
    'nothing': (b'', 'it is empty'),
    'a page': (b'<!DOCTYPE html><html>not found', r"none of JPEG, .*begins with b'<!DOCTYP'"),
    'eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n', "begins with b'%!PS-Ado'"),
    'half a jpeg': (KINDS['jpeg'][:-20], 'truncated'),
    'the start of a jpeg': (KINDS['jpeg'][:30], 'none of JPEG|Truncated'),
    'half a png': (PNG[: len(PNG) // 2], 'truncated'),
    'half a webp': (KINDS['webp'][:-9], 'could not create decoder'),
    'half a tiff': (encoded(IMAGE, 'TIFF')[:-100], 'truncated'),
    'a png of a wrong sum': (PNG[:40] + b'x' + PNG[41:], 'broken PNG|none of JPEG|CRC'),
    'floats': (encoded(Image.fromarray(np.zeros((4, 5), np.float32)), 'TIFF'), '8 or 16 bits a channel, got floating'),
    '32 bits': (encoded(Image.fromarray(np.zeros((4, 5), np.int32)), 'TIFF'), '8 or 16 bits a channel, got 32 bits'),
    'a bomb': (encoded(Image.new('1', (14_000, 14_000)), 'PNG'), 'decompression bomb'),
}


@pytest.mark.parametrize(('encoded', 'reason'), BAD.values(), ids=BAD)
def test_what_is_no_image_is_named(tmp_path: Path, encoded: bytes, reason: str):
    path = tmp_path / 'a b.png'
    path.write_bytes(encoded)
    with pytest.raises(images.ImageError, match=f'a b.png is not a readable image: .*({reason})') as error:
        rgb(path)
    assert 'BytesIO' not in str(error.value)
    with pytest.raises(images.ImageError, match='photo 7 is not a readable image: '):
        rgb(encoded, name='photo 7')
    with pytest.raises(images.ImageError, match=r'a b\.png'):
        PRESET(path)


@pytest.mark.parametrize('name', ['nothing', 'a page', 'eps', 'the start of a jpeg', 'floats', '32 bits', 'a bomb'])
def test_a_bad_header_is_named(tmp_path: Path, name: str):
    path = tmp_path / 'a.png'
    path.write_bytes(BAD[name][0])
    with pytest.raises(images.ImageError, match=r'a\.png is not a readable image: '):
        images.check_header(path)


def test_an_eps_file_starts_no_program(monkeypatch, tmp_path: Path):
    path = tmp_path / 'a.eps'  # Pillow loads the reader of a suffix
    path.write_bytes(BAD['eps'][0])
    started = []
    monkeypatch.setattr('subprocess.Popen', lambda *a, **k: started.append(a))
    monkeypatch.setattr('subprocess.check_call', lambda *a, **k: started.append(a))
    with pytest.raises(images.ImageError):
        rgb(path)
    assert not started


@pytest.mark.parametrize('check', [rgb, images.check_header])
def test_only_regular_files_are_opened(monkeypatch, tmp_path: Path, check):
    os.mkfifo(tmp_path / 'x.jpg')
    (tmp_path / 'folder.jpg').mkdir()
    (tmp_path / 'large.jpg').write_bytes(PNG)
    for name in ('x.jpg', 'folder.jpg'):
        with pytest.raises(images.ImageError, match=f'{name} .*no regular file'):
            check(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        check(tmp_path / 'none.jpg')
    monkeypatch.setattr(images, 'LARGEST_FILE', 10)
    with pytest.raises(images.ImageError, match=r'large\.jpg .*at most 10'):
        check(tmp_path / 'large.jpg')


@pytest.mark.parametrize('size', [(8000, 1), (1, 8000), (3000, 40), (40, 3001), (200, 3), (65_000, 2)])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'nearest'])
def test_strips_are_torchvisions_within_a_level(size: tuple[int, int], interpolation: str):
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    resize = 16 if max(size) < 10_000 else 4
    how = torchvision.transforms.InterpolationMode(interpolation)
    whole = torchvision.transforms.functional.resize(image, resize, how)
    expected = np.asarray(torchvision.transforms.functional.center_crop(whole, [resize - 2] * 2), int)
    out = np.asarray(images.resized_centre(image, resize, resize - 2, interpolation), int)
    assert np.abs(out - expected).max() <= (1 if interpolation != 'nearest' else 0)
    exact = max(size) // min(size) < images.LONGEST
    assert not exact or (out == expected).all()


@pytest.mark.parametrize('size', [(60_000, 1), (1, 60_000), (8000, 1)])
def test_a_strip_takes_no_more_memory_than_a_photograph(size: tuple[int, int]):
    """Resized as a whole, 60,000 x 1 pixels take 16 GB: so much address space is not to be had here."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, limits[1]))
    try:
        out = Preset(256, 224, 'bilinear', (0.5,), (0.5,)).pixels(image)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert out.shape == (224, 224, 3)
