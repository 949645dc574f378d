"""Quality flags of a stored image: blurry, near_empty, extreme_ratio, text_heavy.

Flags are columns of the images table; they drop an image only where `ingest.drop_flags` names them. Thresholds and how
they were set: docs/decisions/0021.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from tasks.ingest.rules import FLAGS

SHARPNESS_LOW = 12.0  # variance of the Laplacian of the grey image, levels^2 (Pech-Pacheco et al., ICPR 2000)
SPREAD_LOW = 3.0  # standard deviation of the 32x32 grey image, levels
RATIO_HIGH = 4.0  # longer side : shorter side
TEXT_EDGES_LOW = 0.10  # share of pixels whose right neighbour differs by more than 64 levels ...
TEXT_GROUND_LOW = 0.45  # ... on a background of one grey level (+-12) that covers this share
CROP_PX = 192  # the middle square that sharpness and text are measured on


def measure_quality(image: Image.Image, spread: float) -> tuple[float, tuple[str, ...]]:
    """(sharpness, flags) of a stored RGB image, measured on its middle 192x192 px.

    Args:
        image: as it will be stored.
        spread: standard deviation of its 32x32 grey image, levels.
    """
    left, top = max(0, image.width // 2 - CROP_PX // 2), max(0, image.height // 2 - CROP_PX // 2)
    box = (left, top, min(image.width, left + CROP_PX), min(image.height, top + CROP_PX))
    grey = np.asarray(image.crop(box).convert("L"))
    sharpness = _sharpness(grey)
    is_flagged = {
        "blurry": sharpness < SHARPNESS_LOW,
        "near_empty": spread < SPREAD_LOW,
        "extreme_ratio": max(image.size) > RATIO_HIGH * min(image.size),
        "text_heavy": _is_text_heavy(grey),
    }
    return sharpness, tuple(flag for flag in FLAGS if is_flagged[flag])


def _sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian of (h, w) uint8 grey levels, levels^2; 0 below 3x3 px."""
    import cv2

    if min(grey.shape) < 3:
        return 0.0
    deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S)[1:-1, 1:-1])[1]
    return round(float(deviation[0, 0]) ** 2, 3)


def _is_text_heavy(grey: np.ndarray) -> bool:
    """Whether many sharp edges stand on an even background, in (h, w) uint8 grey levels."""
    import cv2

    steps = cv2.absdiff(grey[:, 1:], grey[:, :-1]) if grey.shape[1] > 1 else np.zeros(1, np.uint8)
    edges = np.count_nonzero(steps > 64) / steps.size
    if edges < TEXT_EDGES_LOW:
        return False
    levels = np.bincount(grey.ravel(), minlength=256)
    background = np.convolve(levels, np.ones(25, np.int64), "same").max() / grey.size
    return bool(background >= TEXT_GROUND_LOW)
