"""Generated images for tests, and their encoded bytes."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def block_image(seed: int, size: tuple[int, int] = (96, 80), mode: str = "RGB") -> Image.Image:
    """6x6 blocks of random colour: no two seeds are near duplicates."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST).convert(mode)


def smooth_image(seed: int, side_px: int = 192) -> Image.Image:
    """Soft blobs: no two seeds are near duplicates, and a slight crop stays one."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize((side_px, side_px), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The image as a file of this format; options as of Image.save."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def without_palette() -> bytes:
    """A PNG of palette numbers, one of them transparent, whose palette is gone: Pillow opens and decodes it."""
    content = encode(block_image(1).quantize(8), transparency=0)
    start = content.index(b"PLTE") - 4
    return content[:start] + content[start + 12 + int.from_bytes(content[start : start + 4], "big") :]


def save_jpeg(image: Image.Image, path: Path, quality: int = 92) -> bytes:
    """Write the image as a JPEG, making its folder; returns the bytes."""
    content = encode(image, "JPEG", quality=quality)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content
