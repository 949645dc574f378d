"""Images for a vision tower, fast: JPEGs decoded at the scale that is needed, resized as bytes, normalised on the
device.

What a Hugging Face processor of the usual form does (resize, centre crop, rescale, normalise), the same arithmetic by
faster code: OpenCV decodes, libjpeg's inverse DCT gives 1/2, 1/4 or 1/8 of an image much too large; torch resizes the
bytes by Pillow's own filter, vectorised (0.4 ms where Pillow takes 1.7); and the float arithmetic happens once, in the
model's batch, where a GPU does it. Where nothing is decoded smaller the pixels are
the processor's to a rounding. `python -m benchmarks.embed` measures the speed a core and how far the vectors move.
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

# a JPEG is decoded at no less than so many times the size wanted; at 1.1 one vector in 128 fell to a cosine of 0.9984
DECODED = 1.5
# Pillow's filters that torch's antialiased resize of bytes computes alike, to a rounding
TORCH_MODES = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preparation:
    """What a processor's configuration asks for.

    Attributes:
        shortest_px: side that the shorter side is resized to; None where `resize_px` says both.
        resize_px: (width, height) that an image is resized to, whatever its shape; None where the shape stays.
        crop_px: (width, height) of the centre that is kept; None for all.
        resample: Pillow's filter.
        mean, std: per channel, of pixels in 0..1.
        rescale: what a byte is multiplied with.
        is_rounded: whether half a pixel of the crop's offset is rounded to even, as torchvision does, or down, as
            Hugging Face's processors do.
    """

    shortest_px: int | None
    resize_px: tuple[int, int] | None
    crop_px: tuple[int, int] | None
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float
    is_rounded: bool = False

    def prepare(self, content: bytes) -> np.ndarray:
        """A stored image as the tower's pixels, (3, height, width) uint8."""
        from PIL import Image

        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))  # the header alone
        size = self._resized(image.size)
        return self._resampled(self._decoded(image, content, size), size)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.resize_px is not None:
            return self.resize_px
        assert self.shortest_px is not None
        width, height = size
        if width <= height:
            return self.shortest_px, int(self.shortest_px * height / width)
        return int(self.shortest_px * width / height), self.shortest_px

    @staticmethod
    def _decoded(image: Image, content: bytes, size: tuple[int, int]) -> np.ndarray:
        """Pixels (height, width, 3) uint8, at the smallest of 1, 1/2, 1/4, 1/8 that is at least DECODED times `size`
        where it is a JPEG.
        """
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            import cv2

            scale = next(
                (
                    n
                    for n in (8, 4, 2)
                    if all(
                        math.ceil(side / n) >= DECODED * wanted for side, wanted in zip(image.size, size, strict=True)
                    )
                ),
                1,
            )
            # the scale's bit
            how = {
                1: 0,
                2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
                4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
                8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
            }[scale]
            # Images were turned when they were stored; the processor, too, leaves an orientation alone.
            pixels = cv2.imdecode(
                np.frombuffer(content, np.uint8), how | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
            )
            if pixels is not None:
                return np.asarray(pixels)
        return np.array(image.convert("RGB"))

    def _resampled(self, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resized to `size` and cut to the crop, (3, height, width) uint8."""
        if self.resample in TORCH_MODES:
            import torch

            rows = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # channels last: the vectorised kernel
            small = torch.nn.functional.interpolate(
                rows, (size[1], size[0]), mode=TORCH_MODES[self.resample], antialias=True
            )[0].numpy()
        else:
            from PIL import Image

            small = np.asarray(Image.fromarray(pixels).resize(size, self.resample)).transpose(2, 0, 1)
        return self._cut(small, size)

    def _cut(self, small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        width, height = self.crop_px or size
        left, top = [round(gap / 2) if self.is_rounded else gap // 2 for gap in (size[0] - width, size[1] - height)]
        return np.ascontiguousarray(small[:, top : top + height, left : left + width])

    def prepare_image(self, image: Image) -> np.ndarray:
        """An opened image as the tower's pixels, (3, height, width) uint8, by Pillow throughout: what a stock transform
        does.
        """
        size = self._resized(image.size)
        return self._cut(np.asarray(image.convert("RGB").resize(size, self.resample)).transpose(2, 0, 1), size)

    def normalised(self, pixels: Sequence[np.ndarray], device: str) -> Any:
        """Prepared images as the tower's input, (n, 3, height, width) float32 on the device."""
        import torch

        mean, std = torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)
        factor, offset = (self.rescale / std)[:, None, None], (mean / std)[:, None, None]
        if device != "cpu":
            # bytes travel, a quarter of the floats
            return torch.from_numpy(np.stack(pixels)).to(device).float().mul_(factor).sub_(offset)
        batch = torch.empty((len(pixels), *pixels[0].shape))
        for row, image in zip(batch, pixels, strict=True):  # one at a time: it stays in the cache
            row.copy_(torch.from_numpy(image)).mul_(factor).sub_(offset)
        return batch


def preparation_of(processor: Any) -> Preparation | None:
    """The preparation that a Hugging Face image processor stands for; None where it asks for something else (padding,
    tiles, no resize).
    """

    def asked(name: str, default: Any = None) -> Any:
        return getattr(processor, name, default)

    size, crop = dict(asked("size") or {}), dict(asked("crop_size") or {}) if asked("do_center_crop", False) else {}
    size = {k: v for k, v in size.items() if v is not None}
    crop = {k: v for k, v in crop.items() if v is not None}
    known = set(size) == {"shortest_edge"} or set(size) == {"height", "width"}
    if (
        not known
        or not asked("do_resize", True)
        or not asked("do_normalize", True)
        or not asked("do_rescale", True)
        or asked("do_pad", False)
    ):
        return None
    if crop and set(crop) != {"height", "width"}:
        return None
    shortest = size.get("shortest_edge")
    resize = None if shortest else (size["width"], size["height"])
    cut = (crop["width"], crop["height"]) if crop else None
    if cut is not None and (max(cut) > shortest if shortest else cut[0] > resize[0] or cut[1] > resize[1]):  # type: ignore[index]
        return None  # the processor would pad
    if cut is None and shortest:
        return None  # images of many shapes do not make a batch
    return Preparation(
        shortest,
        resize,
        cut,
        int(asked("resample", 3)),
        tuple(asked("image_mean")),
        tuple(asked("image_std")),
        float(asked("rescale_factor", 1 / 255)),
    )
