"""Decode an opened image file: its first frame, shrunk, upright, in sRGB.

A file that ends early or is damaged is rejected, also where a decoder would silently fill in what is missing:
tasks/ingest/jpeg.py, tasks/ingest/png.py.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from tasks.ingest.colour import scale_transparency, to_resizable, to_srgb
from tasks.ingest.colour_signals import clean_aperture, read_signal
from tasks.ingest.jpeg import decode_jpeg, image_from_pixels
from tasks.ingest.png import check_complete
from tasks.ingest.resize import can_shrink, shrink, shrink_pixels
from tasks.ingest.rules import DECODER_ERRORS, NormalizationRules

ORIENTATION = 0x0112  # EXIF tag
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def webp_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) in a WebP's header, px; None for another header.

    Needed before Pillow opens the file, because Pillow allocates the whole canvas while opening it.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    kind, body = content[12:16], content[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where it is missing or unreadable."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def decode_image(image: Image.Image, content: bytes, rules: NormalizationRules) -> Image.Image:
    """An opened file's first frame: at most `rules.max_side_px` a side, upright, sRGB.

    Args:
        image: the file, opened by Pillow and not yet decoded.
        content: the file.
        rules: the stored form.
    Raises:
        DECODER_ERRORS, MemoryError: the bytes do not hold what the header states, or the image is too large.
    """
    profile = image.info.get("icc_profile") or b""
    size, signal = rules.stored_size(*image.size), None
    if image.format in ("JPEG", "MPO"):
        orientation = exif_orientation(image)
        pixels, extent = decode_jpeg(image, content, size)
        if isinstance(pixels, np.ndarray) and can_shrink(extent, size, rules):
            image, extent = shrink_pixels(pixels, size, extent), size
        else:
            image = image_from_pixels(pixels) if isinstance(pixels, np.ndarray) else pixels
    else:
        image.seek(0)
        image.load()
        if image.format == "PNG":
            check_complete(image, content)
            scale_transparency(image, content[24])
        signal = read_signal(image, content)
        if image.format == "AVIF" and (box := clean_aperture(content, *image.size)):
            image = image.crop(box)
            size = rules.stored_size(*image.size)
        orientation = exif_orientation(image)  # after load: a PNG may state it behind its pixels
        extent = image.size
    small = _shrink(to_resizable(image), size, extent, rules)
    if orientation in TRANSPOSES:
        small = small.transpose(TRANSPOSES[orientation])
    return to_srgb(small, profile if isinstance(profile, bytes) else b"", signal)


def _shrink(
    image: Image.Image, size: tuple[int, int], extent: tuple[float, float], rules: NormalizationRules
) -> Image.Image:
    """The part of the image that `extent` names, px from its upper left corner, at this size."""
    if image.size == size:
        return image
    if image.mode in ("L", "RGB") and can_shrink(extent, size, rules):
        return shrink(image, size, extent)
    return image.resize(size, Image.Resampling.LANCZOS, box=(0, 0, *extent), reducing_gap=3.0)
