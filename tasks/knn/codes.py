"""8-bit codes of rows on their principal axes, with the residual norms that make the prefilter's bound a proof."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.knn.exact import Rows, to_float32

MAX_LEVEL = 127  # codes are -127..127
AXES_ROWS = 4096  # rows that the clip range is measured on


@dataclass(frozen=True)
class Axes:
    """The axes that rows are coded along.

    Attributes:
        matrix: (d, w) float32, spectral norm at most 1.
        center: (w,) float32, subtracted from every projected row.
        clip_range: largest coordinate that is coded without clipping.
    """

    matrix: np.ndarray
    center: np.ndarray
    clip_range: float


@dataclass(frozen=True)
class Codes:
    """Rows as small integers, and the norms of each row that the bound needs.

    Attributes:
        codes: (n, w) int8.
        scale: value of one level.
        norm2: (n,) float64, |x|^2 of the stored row.
        code_norm2: (n,) float64, |p|^2 of the code.
        error: (n,) float64, an upper bound h of the distance between the projected row and its code.
    """

    codes: np.ndarray
    scale: float
    norm2: np.ndarray
    code_norm2: np.ndarray
    error: np.ndarray

    def margin(self, distance: float) -> np.ndarray:
        """The term A of the bound (tasks/knn/int8_prefilter.py) for D = `distance`, (n,) float64."""
        return (self.norm2 - self.code_norm2) / 2 + distance * self.error + self.error**2

    def take(self, rows: np.ndarray) -> Codes:
        """The codes of some of the rows."""
        return Codes(self.codes[rows], self.scale, self.norm2[rows], self.code_norm2[rows], self.error[rows])


@dataclass(frozen=True)
class CodedRows:
    """A corpus that was coded earlier; a row's code depends on the row and the axes alone, so it can be stored."""

    axes: Axes
    codes: Codes


def principal_axes(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions by falling variance, as columns (d, d) float64, and the sample's mean (d,) float64.

    Args:
        sample: (m, d), any float type.
    """
    rows = to_float32(sample)
    mean = rows.mean(axis=0, dtype=np.float64)
    rows = rows - mean.astype(np.float32)
    _, directions = np.linalg.eigh((rows.T @ rows).astype(np.float64))
    return directions[:, ::-1], mean


def fit_axes(directions: np.ndarray, mean: np.ndarray, sample: np.ndarray, width: int, seed: int = 0) -> Axes:
    """The first `width` directions, rotated at random among themselves, so that all coordinates have a similar spread
    and one scale serves all.

    Args:
        directions: (d, d) float64, orthonormal columns.
        mean: (d,) float64.
        sample: (m, d) rows that the clip range is measured on; a row beyond it has a larger error, nothing else.
        width: coordinates to keep, 1..d.
        seed: of the rotation.
    """
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    matrix = directions[:, :width] @ rotation
    norm = float(np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-1]))
    # rounding to float32 moves the norm by at most 2^-24 sqrt(width) < 2e-6
    matrix = (matrix / (norm * (1 + 1e-5))).astype(np.float32)
    center = (mean @ matrix.astype(np.float64)).astype(np.float32)
    coordinates = to_float32(sample[:AXES_ROWS]) @ matrix - center
    clip_range = float(np.quantile(np.abs(coordinates), 0.9999)) if coordinates.size else 0.0
    return Axes(matrix, center, max(clip_range, 1e-6))


def code_scale(axes: Axes, levels: int = MAX_LEVEL) -> float:
    """Value of one level of codes along the axes."""
    return float(np.float32(axes.clip_range / levels))


def encode(vectors: Rows, axes: Axes, levels: int = MAX_LEVEL, block: int = 1024) -> Codes:
    """Code rows along the axes.

    Args:
        vectors: (n, d) float16.
        axes: to code along.
        levels: codes are -levels..levels.
        block: rows at a time, which bounds the memory.
    """
    n, (d, width) = len(vectors), axes.matrix.shape
    scale = code_scale(axes, levels)
    codes = np.empty((n, width), np.int8)
    norm2, code_norm2, error = np.empty(n), np.empty(n), np.empty(n)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        x = to_float32(vectors[rows])
        z = x @ axes.matrix
        z -= axes.center
        q = np.clip(np.rint(z * np.float32(1 / scale)), -levels, levels)
        norm2[rows] = np.einsum("nd,nd->n", x, x) * (1 + (d + 2) * 2.0**-24)  # at least |x|^2
        codes[rows] = q
        # integers below 2^24: exact in float32
        code_norm2[rows] = np.einsum("nw,nw->n", q, q).astype(np.float64) * scale**2
        z -= q * np.float32(scale)
        rounding = (d + 16) * 2.0**-24 * np.sqrt(width) * (1 + np.sqrt(norm2[rows]))
        error[rows] = np.sqrt(np.einsum("nw,nw->n", z, z)) * (1 + 1e-4) + rounding
    return Codes(codes, scale, norm2, code_norm2, error)
