"""Normalise one image: from a file's bytes to the one stored form, or to the reason why it is rejected.

Pure functions over bytes; they run in worker processes (tasks/ingest/workers.py). Loads numpy, Pillow and OpenCV,
nothing else.

Steps: the header states format and pixels, and nothing is decoded before both are allowed. A JPEG of at least twice the
wanted side is decoded at 1/2, 1/4 or 1/8 by its DCT (tasks/ingest/jpeg.py). Then, of the first frame
(tasks/ingest/decode.py): shrunk to `max_side_px` (by a Lanczos filter, tasks/ingest/resize.py), turned upright by
its EXIF orientation, converted to sRGB (tasks/ingest/colour.py), and encoded once as JPEG. Only pixels are encoded, so
that no EXIF (GPS), XMP, profile, comment or thumbnail can be carried along. Last, its quality flags
(tasks/ingest/quality_flags.py).

Rejections, by reason: `too_small`, `too_large` (the header states too few or too many pixels), `extreme_ratio` (a long
thin image), `undecodable` (damaged, truncated, or a file named as an image whose format is unknown), `not_a_picture`
(another file of unknown format), `unsupported_format` (GIF, BMP, TIFF, HEIC ...: tasks/ingest/formats.py), `too_costly`
(it needs more memory than a worker has).

Bicubic against Lanczos, and reduced against full decoding: docs/decisions/0020.
"""

from __future__ import annotations

import io
import re
import warnings

from PIL import Image, ImageFile, features

from tasks.fingerprints.perceptual import coarse_grey, color_grid, hash_grey, reduced, thumbnail
from tasks.ingest.decode import decode_image, webp_size
from tasks.ingest.formats import unread_format
from tasks.ingest.quality_flags import measure_quality
from tasks.ingest.rules import DECODER_ERRORS, NormalizationRules, NormalizedImage, Rejection

COSTLY_PIXELS = 2_000_000  # below, no decoder here takes a fifth of the memory that a worker has by default
NO_MEMORY = "takes more memory than a worker has"
MEMORY_ERROR = re.compile(r"(insufficient|out of|not enough|no) memory|cannot allocate|bad_alloc", re.IGNORECASE)
FORMATS = ("JPEG", "PNG", "WEBP", *(("AVIF",) if features.check("avif") else ()))


def normalize_image(content: bytes, *, is_named_image: bool, rules: NormalizationRules) -> NormalizedImage | Rejection:
    """Check a file's header, then decode, shrink, turn and encode it; never raises, whatever the bytes.

    Args:
        content: the file.
        is_named_image: its name claims an image: then bytes of an unknown format are damage, not another file type.
        rules: limits and the stored form.
    """
    image = _open_image(content, is_named_image=is_named_image, rules=rules)
    if isinstance(image, Rejection):
        return image
    if rejection := rules.size_rejection(*image.size):
        return rejection
    header = f"{image.width}x{image.height} px, {image.format} {image.mode}"
    is_costly = image.width * image.height > COSTLY_PIXELS
    try:
        return _encode(decode_image(image, content, rules), rules)
    except MemoryError:
        return Rejection("too_costly", f"{header}: {NO_MEMORY}", is_costly)
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        if MEMORY_ERROR.search(str(error)):
            return Rejection("too_costly", f"{header}: {NO_MEMORY}", is_costly)
        return Rejection("undecodable", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", is_costly)


def _open_image(content: bytes, *, is_named_image: bool, rules: NormalizationRules) -> Image.Image | Rejection:
    """The file opened by Pillow, not yet decoded; or why its header is refused."""
    size = webp_size(content)
    is_costly = content[4:8] == b"ftyp" or bool(size and size[0] * size[1] > COSTLY_PIXELS)
    try:
        if size and (rejection := rules.size_rejection(*size)):
            return rejection
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # rules.max_pixels is stricter
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        return Rejection("too_large", str(error))
    except MemoryError:
        return Rejection("too_costly", "its header alone takes more memory than a worker has", is_costly)
    except DECODER_ERRORS as error:
        detail, other = f"no header of {', '.join(FORMATS)} ({type(error).__name__})", unread_format(content)
        if other:
            detail = f"a {other} file, a format that is not read; convert it to one of {', '.join(FORMATS)}"
        reason = "unsupported_format" if other else "not_a_picture"
        return Rejection("undecodable" if is_named_image else reason, detail, is_costly)


def _encode(image: Image.Image, rules: NormalizationRules) -> NormalizedImage:
    """The stored form of decoded pixels, with their fingerprints and flags."""
    image.info = {}  # pixels only: no EXIF, no profile, no comment
    out = io.BytesIO()
    image.save(out, "JPEG", quality=rules.jpeg_quality, subsampling=rules.jpeg_subsampling, exif=b"", icc_profile=None)
    coarse = reduced(image)
    grey = coarse_grey(coarse)
    sharpness, flags = measure_quality(image, float(grey.std()))
    return NormalizedImage(
        content=out.getvalue(),
        width_px=image.width,
        height_px=image.height,
        phash=hash_grey(grey),
        thumbnail=thumbnail(coarse),
        grid=color_grid(coarse).tobytes() if rules.has_grid else b"",
        sharpness=sharpness,
        flags=flags,
    )


def configure_decoders() -> None:
    """Process-wide settings of a worker: a truncated file is an error, one thread a file, all libraries loaded."""
    import cv2

    cv2.setNumThreads(1)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if "AVIF" in FORMATS:
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
