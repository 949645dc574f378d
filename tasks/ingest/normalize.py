"""What happens to an image: from any bytes to the one stored form, or to the reason why not.

Pure functions over bytes; run in worker processes by tasks/ingest/workers.py. Loads numpy, Pillow and OpenCV, nothing
else.

Order: the header states format and pixels, and nothing is decoded before both are allowed; a JPEG of at least twice the
wanted side is decoded at half (a quarter ...) by its DCT; then first frame, shrunk to `max_side_px` (antialiased
bicubic, or `resized_by_opencv`), turned as EXIF says, converted to sRGB, encoded once. What is encoded is made of
pixels alone, so no EXIF (GPS), XMP, profile, comment or thumbnail can come along.

A file that ends early or is damaged is refused, also where a decoder would fill up what is missing without a word.
JPEG: OpenCV's libjpeg decodes (its pixels are Pillow's, bit for bit) and its warnings are heard. PNG: checksums of the
chunks that matter, the end chunk, and all rows there. A changed byte inside a JPEG's scan that still decodes cannot be
told, for the format has no checksum.

Rules for what is not 8-bit sRGB: transparency lies over white; palettes are resolved; 16-bit grey is scaled to 8 bits,
not clipped; an ICC profile is converted to sRGB (perceptual intent) and a profile that cannot be read counts as sRGB;
CMYK without a profile by Pillow's plain formula; of an animation the first frame.

Bicubic against Lanczos, and half against full decode: docs/decisions/0020-the-stored-image.md.
"""

from __future__ import annotations

import io
import os
import re
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, features

from tasks.fingerprints.perceptual import coarse_grey, grid_of, hash_of_grey, reduced, thumbnail

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
# libjpeg's warnings that mean: part of the image is made up. Others (an odd JFIF version, an odd progression) leave
# every pixel as it was written.
JPEG_DAMAGE = re.compile(r"premature end|bad (?:Huffman|arithmetic) code|instead of RST", re.IGNORECASE)
JPEG_STRAY = re.compile(r"(\d+) extraneous bytes")
JPEG_STRAY_BYTES = 16  # between two markers; more is a scan that lost its step, fewer are some encoders' padding
# first column and row, steps
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# What Pillow's decoders raise on bytes that are not what they claim to be.
BROKEN = (
    *(
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RuntimeError,
    ),
    *(ZeroDivisionError, struct.error, zlib.error, NotImplementedError),
)
# Thresholds of the flags; docs/decisions/0021-copies-and-flags.md.
SHARPNESS_LOW = 12.0  # variance of the Laplacian of the grey image, levels^2 (Pech-Pacheco et al., ICPR 2000)
SPREAD_LOW = 3.0  # standard deviation of the 32x32 grey image, levels
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
    has_grid: bool = False  # whether Image.grid is wanted
    resampler: str = "pillow"  # pillow (antialiased bicubic), or opencv (`resized_by_opencv`)


@dataclass(frozen=True)
class NormalizedImage:
    """A good image, as it will be stored.

    Attributes:
        content: JPEG.
        phash, thumbnail: see tasks/fingerprints/perceptual.py.
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
    def of(cls, content: bytes, facts: dict[str, Any]) -> NormalizedImage:
        """The reverse of `facts`."""
        as_bytes = {k: bytes.fromhex(facts[k]) for k in ("thumbnail", "grid")}
        return cls(content, **{**facts, **as_bytes, "flags": tuple(facts["flags"])})


@dataclass(frozen=True)
class Refusal:
    """Why a file is not kept: a reason of tasks/reasons.py, and a sentence for a person."""

    reason: str
    detail: str = ""


def webp_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) that a WebP's header states, px; Pillow allocates the whole canvas before it tells. None: not
    such a header.
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


def size_refusal(width: int, height: int, rules: Rules) -> Refusal | None:
    """Why an image of this size is not even decoded."""
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
    """The same image in a mode in which neighbours can be averaged: L, RGB, CMYK, or RGBa (alpha multiplied in)."""
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


def resized_by_opencv(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink by up to a factor of two: three taps against aliasing, then OpenCV's cubic; five times as fast as Pillow's
    filters, better than INTER_AREA.

    The outer taps were fitted to a float Lanczos reference: 0.05 at a factor of 1.25, 0.12 at 1.56
    (docs/decisions/0020-the-stored-image.md).

    Args:
        pixels: (h, w) or (h, w, 3) uint8, channels in any order.
        size: width and height wanted, px.
    """
    import cv2

    cv2.setNumThreads(1)
    tap = 0.22 * (max(pixels.shape[:2]) / max(size) - 1)
    taps = np.array([tap, 1 - 2 * tap, tap], np.float32)
    smooth = cv2.sepFilter2D(pixels, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    return cv2.resize(smooth, size, interpolation=cv2.INTER_CUBIC)


def can_opencv(pixels_size: tuple[int, int], wanted: tuple[int, int], rules: Rules) -> bool:
    """Whether `resized_by_opencv` is what the rules want, and is made for this factor."""
    return rules.resampler == "opencv" and pixels_size != wanted and max(pixels_size) <= 2 * max(wanted)


class Hearing:
    """What libraries in C write to stderr, which here is where libjpeg warns. One at a time in a process: file
    descriptor 2 is everybody's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sink = -1

    def decode(self, content: bytes, flags: int) -> tuple[np.ndarray | None, str]:
        """OpenCV's image (None: it can't), and what was written meanwhile."""
        import cv2

        with self._lock:
            if self._sink < 0:
                with tempfile.TemporaryFile() as file:
                    self._sink = os.memfd_create("warnings") if hasattr(os, "memfd_create") else os.dup(file.fileno())
            kept = os.dup(2)
            os.dup2(self._sink, 2)
            try:
                pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
            except cv2.error:
                pixels = None
            finally:
                os.dup2(kept, 2)
                os.close(kept)
            said = ""
            if written := os.lseek(self._sink, 0, os.SEEK_CUR):
                os.lseek(self._sink, 0, os.SEEK_SET)
                said = os.read(self._sink, min(written, 4096)).decode("utf-8", "replace")
                os.ftruncate(self._sink, 0)
                os.lseek(self._sink, 0, os.SEEK_SET)
        return pixels, said


_hearing = Hearing()


def jpeg_damage(said: str) -> str | None:
    """libjpeg's warning that part of an image is not there; None where it said nothing, or nothing that matters."""
    stray = JPEG_STRAY.search(said)
    if JPEG_DAMAGE.search(said) or stray and int(stray[1]) > JPEG_STRAY_BYTES:
        return said.strip().splitlines()[0]
    return None


def decoded_jpeg(image: Image.Image, content: bytes, wanted: tuple[int, int]) -> np.ndarray | Image.Image:
    """A JPEG's pixels: the smallest of 1/1, 1/2, 1/4, 1/8 of its size that is no smaller than wanted.

    Returns:
        (h, w) uint8 grey or (h, w, 3) uint8 in the order blue, green, red; an image where it is CMYK.
    Raises:
        BROKEN, MemoryError: it is cut off or damaged, or it does not fit.
    """
    import cv2

    width, height = image.size
    scale = next((s for s in (8, 4, 2) if width // s >= wanted[0] and height // s >= wanted[1]), 1)
    colour = {
        1: cv2.IMREAD_COLOR_BGR,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }
    grey = {
        1: cv2.IMREAD_GRAYSCALE,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
    }
    is_plain = image.mode in ("L", "RGB")
    pixels, said = _hearing.decode(content, grey[scale] if image.mode == "L" else colour[scale if is_plain else 8])
    if damage := jpeg_damage(said):
        raise OSError(damage)
    if pixels is not None and is_plain:
        return pixels
    image.draft(None, wanted)
    image.load()  # raises where the file is cut off
    if is_plain:
        raise OSError(f"one decoder reads it, another does not ({said.strip()[:100]})")
    return image


def image_of(pixels: np.ndarray) -> Image.Image:
    """(h, w) grey or (h, w, 3) BGR as an image in mode L or RGB."""
    if pixels.ndim == 2:
        return Image.fromarray(pixels)
    return Image.frombuffer("RGB", (pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(pixels), "raw", "BGR", 0, 1)


def png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(kind, body) of a PNG's chunks up to its end chunk.

    Raises:
        OSError: it ends before, or a chunk that an image needs does not have its checksum.
    """
    view, at = memoryview(content), 8
    while at + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        end = at + 8 + size
        if end + 4 > len(content):
            break
        # capital letter: critical
        if kind[0] & 0x20 == 0 and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise OSError(f"a PNG whose chunk {kind.decode('ascii', 'replace')} has another checksum")
        yield kind, view[at + 8 : end]
        if kind == b"IEND":
            return
        at = end + 4
    raise OSError("a PNG without its end")


def png_size_bytes(width: int, height: int, depth: int, colour: int, *, is_interlaced: bool) -> int:
    """Bytes that a PNG's rows unpack to, one for the filter of each row included."""
    bits = depth * PNG_CHANNELS[colour]
    total = 0
    for left, top, across, down in ADAM7 if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def check_png(image: Image.Image, content: bytes) -> None:
    """Look whether a PNG that was decoded was there as a whole.

    Rows that are missing stay zero, so only where the last row is zero (or rows come interlaced) are the rows unpacked
    again, and counted.

    Raises:
        OSError: it was not.
        zlib.error: its rows do not unpack.
    """
    chunks = [(kind, body) for kind, body in png_chunks(content) if kind in (b"IHDR", b"IDAT")]
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1][:13])
    if not interlaced and np.asarray(image.crop((0, image.height - 1, image.width, image.height))).any():
        return
    unpacker, left = zlib.decompressobj(), png_size_bytes(width, height, depth, colour, is_interlaced=bool(interlaced))
    wanted = left
    for kind, body in chunks:
        piece: Any = body if kind == b"IDAT" else b""
        while piece and left > 0 and not unpacker.eof:
            left -= len(unpacker.decompress(piece, 1 << 20))
            piece = unpacker.unconsumed_tail
    while left > 0 and not unpacker.eof and (more := unpacker.decompress(b"", 1 << 20)):
        left -= len(more)
    if left > 0:
        raise OSError(f"a PNG with {wanted - left} of its {wanted} bytes of rows")


def decoded(image: Image.Image, content: bytes, rules: Rules) -> Image.Image:
    """An opened file's first frame: shrunk, upright, sRGB.

    Raises:
        BROKEN, MemoryError: the bytes do not hold what the header states, or it does not fit.
    """
    profile = image.info.get("icc_profile") or b""
    wanted = stored_size(*image.size, rules.max_side_px)
    if image.format in ("JPEG", "MPO"):
        turn = turn_of(image)
        pixels = decoded_jpeg(image, content, wanted)
        if isinstance(pixels, np.ndarray) and can_opencv(pixels.shape[1::-1], wanted, rules):
            pixels = resized_by_opencv(pixels, wanted)
        image = image_of(pixels) if isinstance(pixels, np.ndarray) else pixels
    else:
        image.seek(0)
        image.load()
        if image.format == "PNG":
            check_png(image, content)
        turn = turn_of(image)  # a PNG may tell it behind its pixels
    small = shrinkable(image)
    if small.size != wanted:
        if small.mode in ("L", "RGB") and can_opencv(small.size, wanted, rules):
            small = Image.fromarray(resized_by_opencv(np.asarray(small), wanted))
        else:
            small = small.resize(wanted, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if turn in TURNS:
        small = small.transpose(TURNS[turn])
    return flat_rgb(small, profile if isinstance(profile, bytes) else b"")


def flags_of(image: Image.Image, spread: float) -> tuple[float, tuple[str, ...]]:
    """(sharpness, flags) of a stored RGB image; looked at in its middle 192x192 px.

    Args:
        image: as it will be stored.
        spread: standard deviation of its coarse grey image, levels.
    """
    left, top = max(0, image.width // 2 - 96), max(0, image.height // 2 - 96)
    grey = np.asarray(
        image.crop((left, top, min(image.width, left + 192), min(image.height, top + 192))).convert("L"), np.int16
    )
    if min(grey.shape) >= 3:
        middle = grey[1:-1, 1:-1]
        laplacian = (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle).astype(
            np.float32
        )
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


def read_image(content: bytes, *, is_named_image: bool, rules: Rules) -> NormalizedImage | Refusal:
    """Check a file's header, then decode, shrink, turn and encode it; never raises on any bytes.

    Args:
        content: the file.
        is_named_image: its name says that it is one: then bytes of no known format are damage, not a stray file.
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
        return Refusal(
            "undecodable" if is_named_image else "not_a_picture",
            f"no header of {', '.join(FORMATS)} ({type(error).__name__})",
        )
    if refusal := size_refusal(*image.size, rules):
        return refusal
    stated = f"{image.width}x{image.height} px, {image.format} {image.mode}"
    try:
        small = decoded(image, content, rules)
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
    return NormalizedImage(out.getvalue(), *small.size, hash_of_grey(grey), thumbnail(coarse), grid, sharpness, flags)


def be_strict(rules: Rules) -> None:
    """Process-wide settings of a worker: a cut file is an error, one thread a file, all libraries loaded."""
    import cv2

    cv2.setNumThreads(1)
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    if "AVIF" in FORMATS:
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
