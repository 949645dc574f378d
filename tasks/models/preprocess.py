"""Pictures for a vision tower, fast: JPEGs decoded at the scale that is needed, resized as bytes, normalised on the device.

What a Hugging Face processor of the usual form does (resize, centre crop, rescale, normalise) in three steps less: libjpeg's inverse DCT already
gives 1/2, 1/4 or 1/8 of a large picture; only what the crop keeps is resized, in uint8; and the float arithmetic happens once, in the model's
batch, where a GPU does it. `python -m benchmarks.embed` measures the speed a core and how far the vectors move.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

DECODED = 1.1  # a JPEG is decoded at no less than so many times the size wanted: the filter still has something to weigh


@dataclass(frozen=True)
class Preparation:
    """What a processor's configuration asks for.

    Attributes:
        shortest_px: side that the shorter side is resized to; None where `resize_px` says both.
        resize_px: (width, height) that a picture is resized to, whatever its shape; None where the shape stays.
        crop_px: (width, height) of the centre that is kept; None for all.
        resample: Pillow's filter.
        mean, std: per channel, of pixels in 0..1.
        rescale: what a byte is multiplied with.
    """

    shortest_px: int | None
    resize_px: tuple[int, int] | None
    crop_px: tuple[int, int] | None
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float

    def prepare(self, content: bytes) -> np.ndarray:
        """A stored picture as the tower's pixels, (3, height, width) uint8."""
        from PIL import Image

        picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))
        full = picture.size
        size = self._resized(full)
        least = (math.ceil(DECODED * size[0]), math.ceil(DECODED * size[1]))
        picture.draft("RGB", least)  # JPEG alone: the smallest of 1, 1/2, 1/4, 1/8 that is not below it
        return self._cut(picture.convert("RGB"), size)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.resize_px is not None:
            return self.resize_px
        assert self.shortest_px is not None
        width, height = size
        if width <= height:
            return self.shortest_px, int(self.shortest_px * height / width)
        return int(self.shortest_px * width / height), self.shortest_px

    def _cut(self, picture: Image, size: tuple[int, int]) -> np.ndarray:
        """Resize to `size`, but only what the centre crop keeps of it."""
        width, height = self.crop_px or size
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        across, down = picture.width / size[0], picture.height / size[1]
        box = (left * across, top * down, min((left + width) * across, picture.width), min((top + height) * down, picture.height))
        small = picture.resize((width, height), self.resample, box=box)
        return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))

    def normalised(self, pixels: Sequence[np.ndarray], device: str) -> Any:
        """Prepared pictures as the tower's input, (n, 3, height, width) float32 on the device."""
        import torch

        mean, std = torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)
        batch = torch.from_numpy(np.stack(pixels)).to(device)  # bytes travel, a quarter of the floats
        return batch.float().mul_((self.rescale / std)[:, None, None]).sub_((mean / std)[:, None, None])


def preparation_of(processor: Any) -> Preparation | None:
    """The preparation that a Hugging Face image processor stands for; None where it asks for something else (padding, tiles, no resize)."""

    def asked(name: str, default: Any = None) -> Any:
        return getattr(processor, name, default)

    size, crop = dict(asked("size") or {}), dict(asked("crop_size") or {}) if asked("do_center_crop", False) else {}
    size = {k: v for k, v in size.items() if v is not None}
    crop = {k: v for k, v in crop.items() if v is not None}
    known = set(size) == {"shortest_edge"} or set(size) == {"height", "width"}
    if not known or not asked("do_resize", True) or not asked("do_normalize", True) or not asked("do_rescale", True) or asked("do_pad", False):
        return None
    if crop and set(crop) != {"height", "width"}:
        return None
    shortest = size.get("shortest_edge")
    resize = None if shortest else (size["width"], size["height"])
    cut = (crop["width"], crop["height"]) if crop else None
    if cut is not None and (max(cut) > shortest if shortest else cut[0] > resize[0] or cut[1] > resize[1]):  # type: ignore[index]
        return None  # the processor would pad
    if cut is None and shortest:
        return None  # pictures of many shapes do not make a batch
    return Preparation(
        shortest, resize, cut, int(asked("resample", 3)), tuple(asked("image_mean")), tuple(asked("image_std")), float(asked("rescale_factor", 1 / 255))
    )
