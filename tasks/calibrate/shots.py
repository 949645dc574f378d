"""Other shots of one image, made by code: what stands in for a second photograph where nobody labelled any."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageEnhance

QUALITY, SCALE = 30, 0.5  # of the copy that was published elsewhere
CROP = 0.75  # of each side that a crop leaves
MOVE = 0.12  # furthest that a corner moves inwards, share of the side
LIGHT = (0.65, 1.4)  # brightness


def other_shots(image: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    """Four shots by the kind of change: recoded (half the size, JPEG quality 30), cropped (to three quarters of each
    side, anywhere), moved (a camera that stands elsewhere: each corner moves inwards by up to 12%), relit (brighter or
    darker, paler).

    None of them turns the object or changes what stands behind it, as a real second photograph does.

    Args:
        image: RGB.
        rng: decides place, move and light.
    """
    width, height = image.size
    encoded = io.BytesIO()
    image.resize((max(1, round(SCALE * width)), max(1, round(SCALE * height)))).save(encoded, "JPEG", quality=QUALITY)
    size = max(1, round(CROP * width)), max(1, round(CROP * height))
    left, top = (int(rng.integers(0, side - part + 1)) for side, part in zip((width, height), size, strict=True))
    moves = rng.uniform(0, MOVE, (4, 2)) * (width, height)
    corners = np.array([(0, 0), (0, height), (width, height), (width, 0)])  # from the upper left, by the lower left
    inwards = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)])
    quad = (corners + inwards * moves).ravel().tolist()
    light = ImageEnhance.Brightness(image).enhance(LIGHT[int(rng.integers(0, 2))])
    return {
        "recoded": Image.open(io.BytesIO(encoded.getvalue())).convert("RGB"),
        "cropped": image.crop((left, top, left + size[0], top + size[1])),
        "moved": image.transform(image.size, Image.Transform.QUAD, quad, Image.Resampling.BICUBIC),
        "relit": ImageEnhance.Color(light).enhance(0.7),
    }
