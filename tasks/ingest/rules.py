"""What the steps of normalising one image share: the rules, the result, the rejection, and the decoders' errors."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, fields
from typing import Any

FLAGS = ("blurry", "near_empty", "extreme_ratio", "text_heavy")
# What Pillow's decoders raise on bytes that are not what they claim to be.
DECODER_ERRORS = (
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
    ZeroDivisionError,
    struct.error,
    zlib.error,
    NotImplementedError,
)


@dataclass(frozen=True)
class NormalizationRules:
    """Limits on source images, and the stored form; units and defaults as in tasks.config.IngestConfig.

    Attributes:
        max_side_px: longest side of a stored image.
        min_side_px: shortest side of a source image.
        max_pixels: most pixels of a source image.
        min_stored_side_px: shortest side of a stored image.
        max_aspect_ratio: longer side of an image by its shorter one, at most.
        jpeg_quality, jpeg_subsampling: of the stored JPEG.
        has_grid: whether `NormalizedImage.grid` is computed.
        resampler: pillow, or simd (tasks/ingest/resize.py), formerly opencv: both by a Lanczos filter.
    """

    max_side_px: int = 512
    min_side_px: int = 48
    max_pixels: int = 50_000_000
    jpeg_quality: int = 95
    jpeg_subsampling: str = "4:4:4"
    has_grid: bool = False
    resampler: str = "pillow"
    min_stored_side_px: int = 8
    max_aspect_ratio: float = 100.0

    def size_rejection(self, width: int, height: int) -> Rejection | None:
        """Why an image of this size, px, is not decoded; None when it may be."""
        if width * height > self.max_pixels:
            return Rejection("too_large", f"{width}x{height} px, at most {self.max_pixels} px in all")
        if min(width, height) < self.min_side_px:
            return Rejection("too_small", f"{width}x{height} px, at least {self.min_side_px} px a side")
        return self._shape_rejection(width, height)

    def _shape_rejection(self, width: int, height: int) -> Rejection | None:
        """Why an image of this shape is too long for the models that will see it; None when it is not.

        Processors take images of one or three rows for ones whose channels come first, and Qwen-VL's refuse a ratio
        above 200. An image that min_side_px allows at its own size is not held to more.
        """
        stored = self.stored_size(width, height)
        ratio = max(max(width, height) / min(width, height), max(stored) / min(stored))
        if min(stored) < min(self.min_stored_side_px, self.min_side_px, self.max_side_px):
            limit = f"at least {self.min_stored_side_px} px"
            return Rejection("extreme_ratio", f"{width}x{height} px, stored {stored[0]}x{stored[1]} px, {limit}")
        if ratio > self.max_aspect_ratio:
            return Rejection(
                "extreme_ratio", f"{width}x{height} px, {ratio:.0f} to 1, at most {self.max_aspect_ratio:g}"
            )
        return None

    def stored_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height, px, with the longer side at most `max_side_px`: aspect ratio kept, never enlarged."""
        longer = max(width, height)
        if longer <= self.max_side_px:
            return width, height
        return max(1, round(width * self.max_side_px / longer)), max(1, round(height * self.max_side_px / longer))


@dataclass(frozen=True)
class NormalizedImage:
    """An image in its stored form.

    Attributes:
        content: JPEG.
        width_px, height_px: of the stored form.
        phash, thumbnail: see tasks/fingerprints/perceptual.py.
        grid: 64x64 RGB means, 12,288 bytes, for finding copies with other margins; never stored; empty unless
            `NormalizationRules.has_grid`.
        sharpness: variance of the Laplacian, grey levels^2.
        flags: those of FLAGS that apply.
    """

    content: bytes
    width_px: int
    height_px: int
    phash: int
    thumbnail: bytes
    grid: bytes = b""
    sharpness: float = 0.0
    flags: tuple[str, ...] = ()

    def to_json(self, *, has_grid: bool = True) -> dict[str, Any]:
        """All fields except the content, and the grid unless it is to be sent beside them, as JSON values."""
        left_out = ("content", "grid")
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in left_out}
        grid = {"grid": self.grid.hex()} if has_grid else {}
        return {**values, **grid, "thumbnail": self.thumbnail.hex(), "flags": list(self.flags)}

    @classmethod
    def from_json(cls, content: bytes, values: dict[str, Any], grid: bytes = b"") -> NormalizedImage:
        """The reverse of `to_json`; `grid` where the values have none."""
        own = {**values, "thumbnail": bytes.fromhex(values["thumbnail"]), "flags": tuple(values["flags"])}
        own["grid"] = bytes.fromhex(values["grid"]) if "grid" in values else grid
        return cls(content, **own)


@dataclass(frozen=True)
class Rejection:
    """Why a file is dropped.

    Attributes:
        reason: of tasks/reasons.py.
        detail: one sentence for a person.
        is_costly: the file is so large, or ended its worker in such a way, that a worker in another state might have
            decoded it: it is tried again in a new one.
    """

    reason: str
    detail: str = ""
    is_costly: bool = False
