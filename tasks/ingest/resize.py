"""Shrink images with OpenCV by a filter that is designed to give what a Lanczos filter gives
(`ingest.resampler: opencv`): about three times as fast as Pillow's Lanczos.

Two steps: one short separable low-pass filter at the source's size, then OpenCV's cubic or linear interpolation at the
places of the result's pixels; before them, from a factor of three on, the mean of 2x2 pixels. The taps of the low-pass
filter are the least-squares solution for which all steps together come nearest to a Lanczos filter of three lobes,
over the places between two source pixels that the results fall on, for images whose neighbouring pixels correlate by
CORRELATION. They depend on the factor alone; no image is fitted.

PSNR to a float Lanczos filter, tap counts and speed: docs/decisions/0084.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tasks.ingest.rules import NormalizationRules

CORRELATION = 0.9  # of neighbouring pixels, in the images that the taps are designed for
LOBES = 3  # of the Lanczos filter that they imitate
MAX_FACTOR = 4.0  # larger factors are Pillow's: JPEGs come at less than this from the decoder
LINEAR_FACTOR = 2.0  # from here on the filtered image is smooth enough for linear interpolation
HALF_FACTOR = 3.0  # from here on the mean of 2x2 pixels comes first
FACTOR_STEPS = 32  # of a factor of one, at which taps are designed
PHASES = 16  # places between two source pixels, where the factor does not say which ones
CUBIC = -0.75  # OpenCV's parameter of cubic interpolation


@dataclass(frozen=True)
class _Filter:
    """What the taps of one axis depend on.

    Attributes:
        steps: the factor between the filtered image and the result, in 1 / FACTOR_STEPS.
        is_exact: whether the factor is this one; then the places between two pixels are known, else all count.
        cell: side of the means that were taken before, px: 1 or 2.
        is_linear: whether linear interpolation follows, else cubic.
    """

    steps: int
    is_exact: bool
    cell: int
    is_linear: bool


def can_use_opencv(extent: tuple[float, float], target: tuple[int, int], rules: NormalizationRules) -> bool:
    """Whether the rules ask for `resize_opencv`, and it is made for shrinking by this factor; sizes in px."""
    factors = [have / want for have, want in zip(extent, target, strict=True)]
    return rules.resampler == "opencv" and max(factors) > 1 and min(factors) >= 1 and max(factors) <= MAX_FACTOR


def resize_opencv(pixels: np.ndarray, size: tuple[int, int], extent: tuple[float, float] | None = None) -> np.ndarray:
    """Shrink by a factor of one to MAX_FACTOR a side.

    Args:
        pixels: (h, w) or (h, w, 3) uint8, channels in any order.
        size: width and height of the result, px.
        extent: width and height of the part of `pixels`, from its upper left corner, that the result shows; all of it
            where None. A decoder that scales rounds sizes up, so that its last pixel may lie partly outside.
    """
    import cv2

    cv2.setNumThreads(1)
    height, width = pixels.shape[:2]
    shown = extent or (width, height)
    is_whole, cell = shown == (width, height), 1
    if is_whole and width % 2 == height % 2 == 0 and min(width / size[0], height / size[1]) >= HALF_FACTOR:
        pixels = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        shown, cell = (width // 2, height // 2), 2
    factors = (shown[0] / size[0], shown[1] / size[1])
    is_linear = min(factors) >= LINEAR_FACTOR
    x_taps, y_taps = (design_taps(factor, cell=cell, is_linear=is_linear) for factor in factors)
    smooth = cv2.sepFilter2D(pixels, -1, x_taps, y_taps, borderType=cv2.BORDER_REFLECT_101)
    interpolation = cv2.INTER_LINEAR if is_linear else cv2.INTER_CUBIC
    if is_whole:
        return cv2.resize(smooth, size, interpolation=interpolation)
    places = np.array([[factors[0], 0, (factors[0] - 1) / 2], [0, factors[1], (factors[1] - 1) / 2]])
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(smooth, places, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def design_taps(factor: float, *, cell: int = 1, is_linear: bool = False) -> np.ndarray:
    """(2n + 1,) float32 taps of the low-pass filter of one axis; symmetric, their sum is 1.

    Args:
        factor: between the image that is filtered and the result.
        cell: side of the means that were taken before, px.
        is_linear: whether linear interpolation follows, else cubic.
    """
    steps = round(factor * FACTOR_STEPS)
    return _taps(_Filter(steps, abs(factor * FACTOR_STEPS - steps) < 1e-6, cell, is_linear))


@lru_cache(maxsize=1024)
def _taps(spec: _Filter) -> np.ndarray:
    factor, cell = spec.steps / FACTOR_STEPS, spec.cell
    count = max(3, round(factor) + 1) + (cell > 1)  # on each side of the middle one
    if spec.is_exact:
        phases = np.unique((((np.arange(FACTOR_STEPS) + 0.5) * factor - 0.5) % 1).round(6))
    else:
        phases = (np.arange(PHASES) + 0.5) / PHASES
    reach = int(np.ceil(LOBES * factor)) + count + 2  # px of the filtered image
    offsets = np.arange(-reach * cell, (reach + 1) * cell)  # px of the source; 0 belongs to the filtered image's 0
    root = np.linalg.cholesky(CORRELATION ** np.abs(offsets[:, None] - offsets)).T
    rows, wanted = [], []
    for phase in phases:
        x = (offsets - ((phase + 0.5) * cell - 0.5)) / (factor * cell)
        lanczos = np.where(np.abs(x) < LOBES, np.sinc(x) * np.sinc(x / LOBES), 0)
        weights = _linear_weights(phase) if spec.is_linear else _cubic_weights(phase)
        spread = np.zeros((2 * reach + 1, 2 * count + 1))  # from a tap to the weights of both steps together
        for column in range(2 * count + 1):
            start = reach + column - count - 1
            spread[start : start + 4, column] = weights
        halves = spread[:, count:].copy()
        halves[:, 1:] += spread[:, :count][:, ::-1]  # symmetric taps
        rows.append(root @ np.repeat(halves / cell, cell, axis=0))
        wanted.append(root @ (lanczos / lanczos.sum()))
    every, target = np.concatenate(rows), np.concatenate(wanted)
    middle = every[:, :1]
    outer = np.linalg.lstsq(every[:, 1:] - 2 * middle, target - middle[:, 0], rcond=None)[0]  # their sum is 1
    return np.concatenate([outer[::-1], [1 - 2 * outer.sum()], outer]).astype(np.float32)


def _linear_weights(phase: float) -> np.ndarray:
    """(4,) weights of linear interpolation, of the pixels at -1, 0, 1 and 2, for a place of 0..1."""
    return np.array([0.0, 1 - phase, phase, 0.0])


def _cubic_weights(phase: float) -> np.ndarray:
    """(4,) weights of OpenCV's cubic interpolation, of the pixels at -1, 0, 1 and 2, for a place of 0..1."""
    near = np.abs(np.array([0.0, 1.0]) - phase)
    far = np.abs(np.array([-1.0, 2.0]) - phase)
    inner = ((CUBIC + 2) * near - (CUBIC + 3)) * near**2 + 1
    outer = ((CUBIC * far - 5 * CUBIC) * far + 8 * CUBIC) * far - 4 * CUBIC
    return np.array([outer[0], inner[0], inner[1], outer[1]])
