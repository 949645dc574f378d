"""Shared by the benchmarks: photographs and drawn scenes as ingest stores them, JPEG at quality 95."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image


def stored_photographs(folder: Path, count: int, max_side: int, enlarge: bool = False) -> list[bytes]:
    """JPEG bytes of at most `count` photographs, drawn evenly over the folder, no side above `max_side` px (0: none);
    with `enlarge` all of that size.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    return [
        _stored(Image.open(files[n]).convert("RGB"), max_side, enlarge)
        for n in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)
    ]


def stored_scenes(count: int, max_side: int, seed: int = 0) -> list[bytes]:
    """JPEG bytes of scenes of the sample world, their longer side `max_side` px."""
    from tasks.sample.scenes import draw_image, family

    rng = random.Random(seed)
    images: list[Image.Image] = []
    while len(images) < count:
        images += [draw_image(scene, rendering=rng.randrange(1 << 30)) for scene in family(rng, "corpus", 6)]
    return [_stored(p, max_side, enlarge=True) for p in images[:count]]


def _stored(image: Image.Image, max_side: int, enlarge: bool = False) -> bytes:
    scale = max_side / max(image.size) if max_side else 1.0
    if scale < 1 or enlarge:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()
