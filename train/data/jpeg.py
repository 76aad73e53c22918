"""Decoding no more of a JPEG file than its first rows."""

import io

from PIL import Image

# The markers of a frame's header, in which the image's height stands; the other three of C0 to CF mean other things.
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def first_rows(image: Image.Image, rows: int) -> Image.Image:
    """A JPEG file's image, opened but not decoded, without what is below `rows`; other images as they are.

    JPEG is decoded from top to bottom, and Pillow decodes all rows that the header promises. So this opens a copy of
    the file whose header promises fewer. Where the colours have half the resolution, the last two rows can differ from
    the whole image's, which are interpolated with the row below.
    """
    if image.format != 'JPEG' or rows >= image.height:
        return image
    image.fp.seek(0)
    encoded = bytearray(image.fp.read())
    position = 2
    while encoded[position : position + 1] == b'\xff':
        if encoded[position + 1] in FRAME_MARKERS:
            # Marker and length of the header, two bytes each, and a byte of precision come before the height.
            encoded[position + 5 : position + 7] = rows.to_bytes(2)
            return Image.open(io.BytesIO(encoded))
        position += 2 + int.from_bytes(encoded[position + 2 : position + 4])
    return image
