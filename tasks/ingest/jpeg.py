"""Decode JPEGs so that libjpeg's warnings show whether the file is damaged.

libjpeg fills in what is missing and only warns. simplejpeg decodes what it does not warn about, which is nearly every
file. Another is decoded by OpenCV, where libjpeg prints its warning to stderr, so stderr is captured meanwhile: the
warning then says whether pixels are missing. The pixels of both are Pillow's, bit for bit. A changed byte inside a
JPEG's scan that still decodes cannot be detected: the format has no checksum.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading

import numpy as np
from PIL import Image

from tasks.ingest.jpeg_segments import missing_scans, without_stray_bytes

# libjpeg's warnings that part of the image is made up. Others (an unknown JFIF version, an odd progression) leave every
# pixel as it was written.
DAMAGE = re.compile(r"premature end|bad (?:Huffman|arithmetic) code|instead of RST", re.IGNORECASE)
NO_MEMORY = re.compile(r"insufficient memory", re.IGNORECASE)
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes")
MAX_EXTRANEOUS_BYTES = 16  # behind a scan's pixels; more mean a scan out of step, fewer are some encoders' padding
MESSAGE_BYTES = 4096  # of stderr that are kept
MIN_GAP = 2  # times the wanted sides that a scaled decode must have at least


class StderrCapture:
    """Decodes with OpenCV and captures what the C libraries write to stderr meanwhile.

    One at a time in a process, because file descriptor 2 belongs to the whole process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sink = -1

    def decode(self, content: bytes, flags: int) -> tuple[np.ndarray | None, str]:
        """Decode an image file.

        Args:
            content: the file.
            flags: of cv2.imdecode; its EXIF orientation is always ignored.
        Returns:
            (h, w) or (h, w, 4) uint8 RGBX, None where OpenCV fails; and what was written to stderr, up to
            MESSAGE_BYTES.
        Raises:
            MemoryError: there is not enough for its pixels.
        """
        import cv2

        with self._lock:
            if self._sink < 0:
                with tempfile.TemporaryFile() as file:
                    self._sink = os.memfd_create("warnings") if hasattr(os, "memfd_create") else os.dup(file.fileno())
            stderr = os.dup(2)
            os.dup2(self._sink, 2)
            try:
                pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
            except cv2.error as error:
                if error.code == cv2.Error.StsNoMem:
                    raise MemoryError from None
                pixels = None
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)
            if pixels is not None and pixels.ndim == 3:
                pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGBA)
            return pixels, self._read_message()

    def _read_message(self) -> str:
        """What was written, and an empty sink again."""
        written = os.lseek(self._sink, 0, os.SEEK_CUR)
        if not written:
            return ""
        os.lseek(self._sink, 0, os.SEEK_SET)
        message = os.read(self._sink, min(written, MESSAGE_BYTES)).decode("utf-8", "replace")
        os.ftruncate(self._sink, 0)
        os.lseek(self._sink, 0, os.SEEK_SET)
        return message


_capture = StderrCapture()


def damage_warning(message: str) -> str | None:
    """libjpeg's warning that part of an image is missing; None where it printed none, or none that matters."""
    extraneous = EXTRANEOUS.search(message)
    if DAMAGE.search(message) or extraneous and int(extraneous[1]) > MAX_EXTRANEOUS_BYTES:
        return message.strip().splitlines()[0]
    return None


def _decode_clean(image: Image.Image, content: bytes, scale: int) -> np.ndarray | None:
    """The pixels (h, w) or (h, w, 4) at 1 / scale of the size; None where libjpeg warns or fails, or for CMYK.

    Raises:
        MemoryError: there is not enough for its pixels.
    """
    import simplejpeg

    colours = {"L": "GRAY", "RGB": "RGBX"}.get(image.mode)
    if colours is None:
        return None
    width, height = (-(-side // scale) for side in image.size)
    least = (height, width) if scale > 1 else (0, 0)
    try:
        pixels = simplejpeg.decode_jpeg(content, colours, min_height=least[0], min_width=least[1])
    except (ValueError, RuntimeError):
        return None
    if pixels.shape[:2] != (height, width):
        return None
    return pixels if colours == "RGBX" else pixels[..., 0]


def decode_jpeg(
    image: Image.Image, content: bytes, size: tuple[int, int]
) -> tuple[np.ndarray | Image.Image, tuple[float, float]]:
    """A JPEG's pixels at the smallest of 1/1, 1/2, 1/4, 1/8 of its size that has twice the sides of `size`.

    Scaling is done by the decoder (in the DCT domain), which costs less than decoding in full. At less than twice the
    wanted sides its blocks would show in the result.

    Args:
        image: the file, opened by Pillow and not yet decoded.
        content: the file.
        size: width and height needed, px.
    Returns:
        (h, w) uint8 grey or (h, w, 4) uint8 RGBX, a Pillow image where it is CMYK; and the width and height, px of
        these, that the file's image has: the decoder rounds them up.
    Raises:
        tasks.ingest.rules.DECODER_ERRORS, MemoryError: truncated, damaged, or too large.
    """
    import cv2

    width, height = image.size
    wanted = (MIN_GAP * size[0], MIN_GAP * size[1])
    scale = next((s for s in (8, 4, 2) if max(width, height) >= s * max(wanted)), 1)
    if (clean := _decode_clean(image, content, scale)) is not None and not missing_scans(content):
        return clean, (width / scale, height / scale)
    colour_flags = {
        1: cv2.IMREAD_COLOR_BGR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    grey_flags = {
        1: cv2.IMREAD_GRAYSCALE,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    }
    is_grey_or_rgb = image.mode in ("L", "RGB")
    # CMYK is decoded once by OpenCV, small, for its warnings alone
    flags = grey_flags[scale] if image.mode == "L" else colour_flags[scale if is_grey_or_rgb else 8]
    pixels, message = _capture.decode(content, flags)
    if EXTRANEOUS.search(message) and (mended := without_stray_bytes(content)) != content:
        pixels, message = _capture.decode(mended, flags)  # libjpeg prints its first warning only
    if pixels is None and NO_MEMORY.search(message):
        raise MemoryError
    if damage := damage_warning(message) or missing_scans(content):
        raise OSError(damage)
    if pixels is not None and is_grey_or_rgb:
        return pixels, (width / scale, height / scale)
    drafted = image.draft(None, wanted)
    image.load()  # raises where the file is truncated
    if is_grey_or_rgb:
        raise OSError(f"one decoder reads it, another does not ({message.strip()[:100]})")
    return image, drafted[1][2:] if drafted else (width, height)


def image_from_pixels(pixels: np.ndarray) -> Image.Image:
    """(h, w) grey or (h, w, 4) RGBX uint8 as a Pillow image in mode L or RGB."""
    if pixels.ndim == 2:
        return Image.fromarray(pixels)
    return Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1).convert("RGB")
