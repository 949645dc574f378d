"""What happens to a picture: from any bytes to the one stored form, or to the reason why not.

Pure functions over bytes; run in worker processes by tasks/picture_workers.py. Loads numpy and Pillow, nothing else.

Order: the header states format and pixels, and nothing is decoded before both are allowed; a JPEG of at least twice the wanted side is decoded at
half (a quarter ...) by its DCT; then first frame, shrunk to `max_side_px` (antialiased bicubic, or `resized_by_opencv`), turned as EXIF says,
converted to sRGB, encoded once. What is encoded is made of pixels alone, so no EXIF (GPS), XMP, profile, comment or thumbnail can come along.

Rules for what is not 8-bit sRGB: transparency lies over white; palettes are resolved; 16-bit grey is scaled to 8 bits, not clipped; an ICC profile is
converted to sRGB (perceptual intent) and a profile that cannot be read counts as sRGB; CMYK without a profile by Pillow's plain formula; of an
animation the first frame.

Bicubic against Lanczos, and half against full decode: docs/decisions/0020-the-stored-picture.md.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, features

from tasks.near_duplicates import coarse_grey, grid_of, hash_of_grey, reduced, thumbnail

FORMATS = ("JPEG", "PNG", "WEBP", *(("AVIF",) if features.check("avif") else ()))
FLAGS = ("blurry", "near_empty", "extreme_ratio", "text_heavy")
ORIENTATION = 0x0112  # EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on bytes that are not what they claim to be.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError),
    *(ZeroDivisionError, struct.error, zlib.error, NotImplementedError),
)
# Thresholds of the flags; docs/decisions/0021-copies-and-flags.md.
SHARPNESS_LOW = 12.0  # variance of the Laplacian of the grey picture, levels^2 (Pech-Pacheco et al., ICPR 2000)
SPREAD_LOW = 3.0  # standard deviation of the 32x32 grey picture, levels
RATIO_HIGH = 4.0  # longer side : shorter side
TEXT_EDGES_LOW = 0.10  # share of pixels whose right neighbour differs by more than 64 levels ...
TEXT_GROUND_LOW = 0.45  # ... on a ground of one grey level (+-12) that covers this share


@dataclass(frozen=True)
class Rules:
    """Limits and the stored form; see tasks.config.IngestConfig for units."""

    max_side_px: int = 512
    min_side_px: int = 48
    max_pixels: int = 50_000_000
    jpeg_quality: int = 95
    jpeg_subsampling: str = "4:4:4"
    has_grid: bool = False  # whether Picture.grid is wanted
    resampler: str = "pillow"  # pillow (antialiased bicubic), or opencv (`resized_by_opencv`)


@dataclass(frozen=True)
class Picture:
    """A good picture, as it will be stored.

    Attributes:
        content: JPEG.
        phash, thumbnail: see tasks/near_duplicates.py.
        grid: 64x64 RGB means, 12,288 bytes, for copies with other margins; never stored.
        sharpness: variance of the Laplacian, grey levels^2.
        flags: of FLAGS, those that hold.
    """

    content: bytes
    width_px: int
    height_px: int
    phash: int
    thumbnail: bytes
    grid: bytes = b""
    sharpness: float = 0.0
    flags: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """All but the content, as JSON can hold it."""
        facts = asdict(self)
        del facts["content"]
        return {**facts, "thumbnail": self.thumbnail.hex(), "grid": self.grid.hex(), "flags": list(self.flags)}

    @classmethod
    def of(cls, content: bytes, facts: dict[str, Any]) -> Picture:
        """The reverse of `facts`."""
        as_bytes = {k: bytes.fromhex(facts[k]) for k in ("thumbnail", "grid")}
        return cls(content, **{**facts, **as_bytes, "flags": tuple(facts["flags"])})


@dataclass(frozen=True)
class Refusal:
    """Why a file is not kept: a reason of tasks/reasons.py, and a sentence for a person."""

    reason: str
    detail: str = ""


def webp_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) that a WebP's header states, px; Pillow allocates the whole canvas before it tells. None: not such a header."""
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


def size_refusal(width: int, height: int, rules: Rules) -> Refusal | None:
    """Why a picture of this size is not even decoded."""
    if width * height > rules.max_pixels:
        return Refusal("too_large", f"{width}x{height} px, at most {rules.max_pixels} px in all")
    if min(width, height) < rules.min_side_px:
        return Refusal("too_small", f"{width}x{height} px, at least {rules.min_side_px} px a side")
    return None


def stored_size(width: int, height: int, max_side_px: int) -> tuple[int, int]:
    """The size with the longer side at most `max_side_px`, the ratio kept, never enlarged, px."""
    longer = max(width, height)
    if longer <= max_side_px:
        return width, height
    return max(1, round(width * max_side_px / longer)), max(1, round(height * max_side_px / longer))


def turn_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where there is none, or one that cannot be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except BROKEN:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


@lru_cache(maxsize=16)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None where the profile is sRGB, or none that fits the mode."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in (ImageCms.getProfileDescription(source) or "").lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    except (ImageCms.PyCMSError, *BROKEN):
        return None


def has_alpha(image: Image.Image) -> bool:
    """Whether any of it may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def shrinkable(image: Image.Image) -> Image.Image:
    """The same picture in a mode in which neighbours can be averaged: L, RGB, CMYK, or RGBa (alpha multiplied in)."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        return Image.fromarray(np.clip(np.asarray(image) / 257, 0, 255).astype(np.uint8))
    if has_alpha(image):
        return image.convert("RGBA").convert("RGBa")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def flat_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    """sRGB without alpha: over white, the profile applied."""
    if image.mode == "RGBa":
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over).convert("RGB")
    transform = to_srgb(profile, image.mode) if profile else None
    return ImageCms.applyTransform(image, transform) or image if transform is not None else image.convert("RGB")


def resized_by_opencv(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Shrink by up to a factor of two: three taps against aliasing, then OpenCV's cubic; five times as fast as Pillow's filters, better than INTER_AREA.

    The outer taps were fitted to a float Lanczos reference: 0.05 at a factor of 1.25, 0.12 at 1.56 (docs/decisions/0020-the-stored-picture.md).
    """
    import cv2

    cv2.setNumThreads(1)
    pixels = np.asarray(image)
    tap = 0.22 * (max(image.size) / max(size) - 1)
    taps = np.array([tap, 1 - 2 * tap, tap], np.float32)
    smooth = cv2.sepFilter2D(pixels, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    return Image.fromarray(cv2.resize(smooth, size, interpolation=cv2.INTER_CUBIC))


def decoded(image: Image.Image, rules: Rules) -> Image.Image:
    """An opened file's first frame: shrunk, upright, sRGB.

    Raises:
        BROKEN, MemoryError: the bytes do not hold what the header states, or it does not fit.
    """
    profile = image.info.get("icc_profile") or b""
    wanted = stored_size(*image.size, rules.max_side_px)
    if image.format in ("JPEG", "MPO"):
        image.draft(None, wanted)  # the smallest of 1/1, 1/2, 1/4, 1/8 that is no smaller than this
    else:
        image.seek(0)
    image.load()
    turn = turn_of(image)
    small = shrinkable(image)
    if small.size != wanted:
        is_little = rules.resampler == "opencv" and small.mode in ("L", "RGB") and max(small.size) <= 2 * max(wanted)
        small = resized_by_opencv(small, wanted) if is_little else small.resize(wanted, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if turn in TURNS:
        small = small.transpose(TURNS[turn])
    return flat_rgb(small, profile if isinstance(profile, bytes) else b"")


def flags_of(image: Image.Image, spread: float) -> tuple[float, tuple[str, ...]]:
    """(sharpness, flags) of a stored RGB picture; looked at in its middle 192x192 px.

    Args:
        image: as it will be stored.
        spread: standard deviation of its coarse grey picture, levels.
    """
    left, top = max(0, image.width // 2 - 96), max(0, image.height // 2 - 96)
    grey = np.asarray(image.crop((left, top, min(image.width, left + 192), min(image.height, top + 192))).convert("L"), np.int16)
    if min(grey.shape) >= 3:
        middle = grey[1:-1, 1:-1]
        laplacian = (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle).astype(np.float32)
        sharpness = round(float(laplacian.var(dtype=np.float64)), 3)
    else:
        sharpness = 0.0
    edges = float(np.mean(np.abs(np.diff(grey, axis=1)) > 64)) if grey.shape[1] > 1 else 0.0
    levels = np.bincount(grey.ravel(), minlength=256)
    ground = np.convolve(levels, np.ones(25, np.int64), "same").max() / grey.size if edges >= TEXT_EDGES_LOW else 0.0
    holds = {
        "blurry": sharpness < SHARPNESS_LOW,
        "near_empty": spread < SPREAD_LOW,
        "extreme_ratio": max(image.size) > RATIO_HIGH * min(image.size),
        "text_heavy": edges >= TEXT_EDGES_LOW and ground >= TEXT_GROUND_LOW,
    }
    return sharpness, tuple(flag for flag in FLAGS if holds[flag])


def read_picture(content: bytes, *, is_named_picture: bool, rules: Rules) -> Picture | Refusal:
    """Check a file's header, then decode, shrink, turn and encode it; never raises on any bytes.

    Args:
        content: the file.
        is_named_picture: its name says that it is one: then bytes of no known format are damage, not a stray file.
        rules: limits and the stored form.
    """
    try:
        if (size := webp_size(content)) and (refusal := size_refusal(*size, rules)):
            return refusal
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        return Refusal("too_large", str(error))
    except MemoryError:
        return Refusal("too_costly", "its header alone takes more memory than a worker has")
    except BROKEN as error:
        return Refusal("undecodable" if is_named_picture else "not_a_picture", f"no header of {', '.join(FORMATS)} ({type(error).__name__})")
    if refusal := size_refusal(*image.size, rules):
        return refusal
    stated = f"{image.width}x{image.height} px, {image.format} {image.mode}"
    try:
        small = decoded(image, rules)
    except MemoryError:
        return Refusal("too_costly", f"{stated}: takes more memory than a worker has")
    except (*BROKEN, Image.DecompressionBombError) as error:
        return Refusal("undecodable", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    small.info = {}  # pixels alone: no EXIF, no profile, no comment
    out = io.BytesIO()
    small.save(out, "JPEG", quality=rules.jpeg_quality, subsampling=rules.jpeg_subsampling, exif=b"", icc_profile=None)
    coarse = reduced(small)
    grey = coarse_grey(coarse)
    sharpness, flags = flags_of(small, float(grey.std()))
    grid = grid_of(coarse).tobytes() if rules.has_grid else b""
    return Picture(out.getvalue(), *small.size, hash_of_grey(grey), thumbnail(coarse), grid, sharpness, flags)


def be_strict(rules: Rules) -> None:
    """Process-wide settings of a worker: a cut file is an error, one thread a file, all libraries loaded."""
    if rules.resampler == "opencv":
        import cv2

        cv2.setNumThreads(1)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if "AVIF" in FORMATS:
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
