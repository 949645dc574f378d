"""Textured images that stand for photographs: families of one motif, none of them a near-copy of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter


def motif(seed: int, width: int, height: int) -> Image.Image:
    """Light over a rough ground, with four soft woven discs."""
    rng = np.random.default_rng(seed)
    ground = Image.fromarray(rng.integers(40, 216, (3, 4, 3), dtype=np.uint8))
    pixels = np.asarray(ground.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float64)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    for _ in range(4):
        cx, cy, radius = rng.uniform(0.1, 0.7), rng.uniform(0.1, 0.7), rng.uniform(0.08, 0.25)
        weight = 1 / (1 + np.exp(((x - cx) ** 2 + (y - cy) ** 2 - radius * radius) * 400))[:, :, None]
        weave = 25 * np.sin(x * rng.uniform(20, 90) + y * rng.uniform(20, 90))[:, :, None]
        pixels = pixels * (1 - weight) + (rng.integers(0, 256, 3) + weave) * weight
    pixels += rng.normal(0, 6, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))


def draw_families(folder: Path, families: int) -> int:
    """JPEGs of 320 x 240 or 240 x 320 px, five a family: whole, two crops, paler and darker. Returns how many."""
    folder.mkdir(parents=True)
    for n in range(families):
        width, height = ((320, 240), (240, 320))[n % 2]
        whole = motif(n, width, height)
        family = {
            "whole": whole,
            "crop": whole.crop((width // 6, height // 8, width, height * 7 // 8)),
            "close": whole.crop((0, 0, width * 2 // 3, height * 2 // 3)),
            "pale": ImageEnhance.Color(ImageEnhance.Brightness(whole).enhance(1.35)).enhance(0.3),
            "dark": ImageEnhance.Brightness(whole).enhance(0.5),
        }
        for name, image in family.items():
            image.save(folder / f"{n:02d}_{name}.jpg", quality=88)
    return len(list(folder.iterdir()))
