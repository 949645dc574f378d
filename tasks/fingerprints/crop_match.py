"""Compare two thumbnails when one may be a slight crop of the other."""

from __future__ import annotations

from functools import cache

import numpy as np

from tasks.fingerprints.perceptual import GRID_SIDE, THUMBNAIL_SIDE


@cache
def _spans(margin: float, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the other image's 8 cells may lie on this one's 64, one axis.

    Returns:
        spans (h, 2): start and end of the other image, in sides of this one; weights (h, 8, 64) of means; visible (h,
        8): share of a cell within.
    """
    moves = np.arange(-round(margin / step), round(margin / step) + 1) * step
    spans = np.array([(a, 1 + b) for a in moves for b in moves])
    weights, visible = _weights(spans)
    return spans, weights, visible


def _weights(spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averaging weights (h, 8, 64) and visible shares (h, 8) of spans (h, 2)."""
    edges = spans[:, :1] + (spans[:, 1:] - spans[:, :1]) * np.arange(THUMBNAIL_SIDE + 1) / THUMBNAIL_SIDE  # (h, 9)
    pixels = np.arange(GRID_SIDE + 1) / GRID_SIDE
    low = np.maximum(edges[:, :-1, None], pixels[None, None, :-1])
    high = np.minimum(edges[:, 1:, None], pixels[None, None, 1:])
    overlap = np.clip(high - low, 0, None)  # (h, 8, 64)
    inside = overlap.sum(axis=2)
    return (overlap / np.maximum(inside, 1e-9)[:, :, None]).astype(np.float32), inside / np.diff(edges, axis=1)


def _aligned(
    grid: np.ndarray, cells: np.ndarray, ys: tuple[np.ndarray, np.ndarray], xs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """(h_y, h_x, 8, 8) mean absolute RGB difference of each cell under each alignment; cells less than 80% visible
    count 0.
    """
    wide = np.einsum("hir,rcx->hicx", ys[0], grid, optimize=True)  # (h_y, 8, 64, 3)
    means = np.einsum("hicx,gjc->hgijx", wide, xs[0], optimize=True)  # (h_y, h_x, 8, 8, 3)
    difference = np.abs(means - cells).mean(axis=4)
    seen = (ys[1] >= 0.8)[:, None, :, None] & (xs[1] >= 0.8)[None, :, None, :]
    return np.where(seen, difference, 0.0)


def crop_distance(grid: bytes, other: bytes, *, margin: float) -> float:
    """Largest cell difference at the best alignment of an image with the thumbnail of another that shows a little more
    or less of it.

    Each side may be moved by up to `margin`: first on a raster of 2%, judged by the mean over the cells, then finer
    around the best.

    Args:
        grid: 64x64 RGB means of the image, 12,288 bytes.
        other: 8x8 thumbnail of the other one, 192 bytes.
        margin: furthest move of a side, share of it.
    Returns:
        mean absolute RGB difference of the worst cell, 0..255.
    """
    image = np.frombuffer(grid, np.uint8).reshape(GRID_SIDE, GRID_SIDE, 3).astype(np.float32)
    cells = np.frombuffer(other, np.uint8).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3).astype(np.float32)
    spans, weights, visible = _spans(margin, 0.02)
    distance = _aligned(image, cells, (weights, visible), (weights, visible))
    y, x = np.unravel_index(int(distance.mean(axis=(2, 3)).argmin()), distance.shape[:2])
    best_y, best_x, best = spans[y], spans[x], float(distance[y, x].max())
    for step in (0.01, 0.005):
        moves = np.array([(a, b) for a in (-step, 0, step) for b in (-step, 0, step)])
        ys, xs = best_y + moves, best_x + moves
        distance = _aligned(image, cells, _weights(ys), _weights(xs))
        y, x = np.unravel_index(int(distance.mean(axis=(2, 3)).argmin()), distance.shape[:2])
        best_y, best_x, best = ys[y], xs[x], float(distance[y, x].max())
    return best
