"""Fast image preprocessing for a vision encoder: decode at reduced scale, resize as bytes, normalise on the device.

It does what a usual Hugging Face processor does (resize, centre crop, rescale, normalise), by faster code: OpenCV
decodes JPEGs, and libjpeg's inverse DCT gives 1/2, 1/4 or 1/8 of an image that is much too large; torch resizes the
bytes with Pillow's own filter, vectorised (0.4 ms where Pillow takes 1.7 ms); and the float arithmetic happens once per
batch, on the model's device. Where no image is decoded at a reduced scale, the pixels are those of the processor up to
rounding. `python -m benchmarks.embed` measures images per second and core, and how far the vectors move.
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

# a JPEG is decoded at no less than so many times its target size; at 1.1 one vector in 128 fell to a cosine of 0.9984
MIN_DECODE_SCALE = 1.5
# Pillow's filters that torch's antialiased resize of bytes computes identically up to rounding
TORCH_MODES = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Preparation:
    """Resize, crop and normalisation, as a processor's configuration states them.

    Attributes:
        shortest_px: length that the shorter side is resized to; None where `resize_px` states both sides.
        resize_px: (width, height) that an image is resized to, whatever its shape; None where the shape stays.
        crop_px: (width, height) of the centre that is kept; None for all.
        resample: Pillow's filter.
        mean, std: per channel, of pixels in 0..1.
        rescale: factor of a byte.
        is_rounded: whether an odd half of the crop's offset is rounded to even, as torchvision does, or down, as
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
        """A stored image as the encoder's pixels, (3, height, width) uint8."""
        from PIL import Image

        image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))  # the header alone
        size = self._target_size(image.size)
        return self._resize_and_crop(self._decode(image, content, size), size)

    def _target_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if self.resize_px is not None:
            return self.resize_px
        assert self.shortest_px is not None
        width, height = size
        if width <= height:
            return self.shortest_px, int(self.shortest_px * height / width)
        return int(self.shortest_px * width / height), self.shortest_px

    @staticmethod
    def _decode(image: Image, content: bytes, size: tuple[int, int]) -> np.ndarray:
        """Pixels (height, width, 3) uint8; of a JPEG at the smallest of the scales 1, 1/2, 1/4, 1/8 that is at least
        MIN_DECODE_SCALE times `size`.
        """
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            import cv2

            scale = next(
                (
                    n
                    for n in (8, 4, 2)
                    if all(
                        math.ceil(side / n) >= MIN_DECODE_SCALE * wanted
                        for side, wanted in zip(image.size, size, strict=True)
                    )
                ),
                1,
            )
            flags = {
                1: 0,
                2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
                4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
                8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
            }[scale]
            # Images were rotated when they were stored; the processor, too, ignores an orientation tag.
            pixels = cv2.imdecode(
                np.frombuffer(content, np.uint8), flags | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
            )
            if pixels is not None:
                return np.asarray(pixels)
        return np.array(image.convert("RGB"))

    def _resize_and_crop(self, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
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
        return self._crop(small, size)

    def _crop(self, small: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        width, height = self.crop_px or size
        left, top = [round(gap / 2) if self.is_rounded else gap // 2 for gap in (size[0] - width, size[1] - height)]
        return np.ascontiguousarray(small[:, top : top + height, left : left + width])

    def prepare_image(self, image: Image) -> np.ndarray:
        """An opened image as the encoder's pixels, (3, height, width) uint8, computed by Pillow alone, like a stock
        transform.
        """
        size = self._target_size(image.size)
        return self._crop(np.asarray(image.convert("RGB").resize(size, self.resample)).transpose(2, 0, 1), size)

    def prepare_image_fast(self, image: Image) -> np.ndarray:
        """As `prepare_image`, resized by torch's vectorised kernel: a pixel in 300 differs, by one level."""
        pixels = np.array(image.convert("RGB"))  # a copy: torch takes no read-only array
        return self._resize_and_crop(pixels, self._target_size(image.size))

    def normalize(self, pixels: Sequence[np.ndarray], device: str) -> Any:
        """Prepared images as the encoder's input, (n, 3, height, width) float32 on the device."""
        import torch

        mean, std = torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)
        factor, offset = (self.rescale / std)[:, None, None], (mean / std)[:, None, None]
        if device != "cpu":
            # bytes are copied to the device, a quarter of the floats' size
            return torch.from_numpy(np.stack(pixels)).to(device).float().mul_(factor).sub_(offset)
        batch = torch.empty((len(pixels), *pixels[0].shape))
        for row, image in zip(batch, pixels, strict=True):  # one at a time: it stays in the cache
            row.copy_(torch.from_numpy(image)).mul_(factor).sub_(offset)
        return batch


def preparation_from_processor(processor: Any) -> Preparation | None:
    """The preparation that equals a Hugging Face image processor; None where that does something else (padding, tiles,
    no resize).
    """

    def setting(name: str, default: Any = None) -> Any:
        return getattr(processor, name, default)

    size, crop = (
        dict(setting("size") or {}),
        dict(setting("crop_size") or {}) if setting("do_center_crop", False) else {},
    )
    size = {k: v for k, v in size.items() if v is not None}
    crop = {k: v for k, v in crop.items() if v is not None}
    known = set(size) == {"shortest_edge"} or set(size) == {"height", "width"}
    if (
        not known
        or not setting("do_resize", True)
        or not setting("do_normalize", True)
        or not setting("do_rescale", True)
        or setting("do_pad", False)
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
        int(setting("resample", 3)),
        tuple(setting("image_mean")),
        tuple(setting("image_std")),
        float(setting("rescale_factor", 1 / 255)),
    )
