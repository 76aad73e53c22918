"""Decoding no more of a JPEG file than its first rows."""

import io

from PIL import Image

# The markers of a frame's header, in which the image's height stands; the other three of C0 to CF mean other things.
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decode_first_rows(image: Image.Image, rows: int) -> None:
    """Sees to it that no more than `rows` rows of a JPEG file's image get decoded; the others will be black.

    JPEG is decoded from top to bottom, and Pillow's decoder goes as far as the header says that the image does. So this
    writes the number of rows there. Where the colours have half the resolution, the last two rows can differ from the
    whole image's, which are interpolated with the row below.

    The file is an io.BytesIO, which is changed, and not decoded yet. Other images are left alone.
    """
    if image.format != 'JPEG' or rows >= image.height or not isinstance(image.fp, io.BytesIO):
        return
    with image.fp.getbuffer() as encoded:
        position = _height_position(encoded)
        if position is None:
            return
        encoded[position : position + 2] = rows.to_bytes(2)
    codec, _, *rest = image.tile[0]
    image.tile = [(codec, (0, 0, image.width, rows), *rest)]


def _height_position(encoded: memoryview) -> int | None:
    """Where the frame's header holds the height; None in a file that is not laid out as usual."""
    position = 2
    while position + 6 < len(encoded) and encoded[position] == 0xFF:
        if encoded[position + 1] in FRAME_MARKERS:
            return position + 5  # after marker and length, two bytes each, and a byte of precision
        position += 2 + int.from_bytes(encoded[position + 2 : position + 4])
    return None
