"""Compare two images of which one may be a slight crop of the other: near-duplicates that thumbnails alone miss."""

from __future__ import annotations

from functools import cache

import numpy as np

from tasks.fingerprints.perceptual import GRID_SIDE, THUMBNAIL_SIDE

COARSE_STEP, FINE_STEPS = 0.02, (0.01, 0.005)  # rasters of moves, shares of a side
MIN_VISIBLE = 0.8  # share of a cell that must be inside the other image for the cell to count


@cache
def _alignments(margin: float, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the other image's 8 cells may lie on this one's 64, on one axis.

    Args:
        margin: furthest move of a side, share of it.
        step: of the raster of moves, share of a side.
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


def _cell_differences(
    grid: np.ndarray, cells: np.ndarray, ys: tuple[np.ndarray, np.ndarray], xs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Mean absolute RGB difference of each cell under each alignment, (h_y, 8, h_x, 8) float32; 0 for cells of which
    less than MIN_VISIBLE is inside the image.

    Args:
        grid: (64, 64, 3) float32.
        cells: (8, 8, 3) float32.
        ys, xs: weights (h, 8, 64) float32 and visible shares (h, 8) of the alignments on each axis.
    """
    rows, columns = (axis[0].reshape(-1, GRID_SIDE) for axis in (ys, xs))
    wide = (rows @ grid.reshape(GRID_SIDE, -1)).reshape(-1, GRID_SIDE, 3)  # (h_y * 8, 64, 3)
    difference = np.zeros((len(ys[0]), THUMBNAIL_SIDE, len(xs[0]), THUMBNAIL_SIDE), np.float32)
    for channel in range(3):
        means = (wide[:, :, channel] @ columns.T).reshape(difference.shape)
        means -= cells[None, :, None, :, channel]
        difference += np.abs(means, out=means)
    difference /= 3
    difference *= (ys[1] >= MIN_VISIBLE)[:, :, None, None]
    difference *= xs[1] >= MIN_VISIBLE
    return difference


def _best(distance: np.ndarray) -> tuple[int, int]:
    """The alignments (y, x) with the least mean over the cells, of `_cell_differences`."""
    means = distance.mean(axis=(1, 3))
    y, x = np.unravel_index(int(means.argmin()), means.shape)
    return int(y), int(x)


def crop_distance(grid: bytes, other: bytes, *, margin: float) -> float:
    """Largest cell difference at the best alignment of an image with the thumbnail of another that shows a little more
    or less of it.

    Each side may move by up to `margin`: first on a raster of 2% of the side, where the best alignment has the least
    mean over the cells, then on finer rasters around the best.

    Args:
        grid: 64x64 RGB means of the image, 12,288 bytes.
        other: 8x8 thumbnail of the other one, 192 bytes.
        margin: furthest move of a side, share of it.
    Returns:
        mean absolute RGB difference of the worst cell, 0..255.
    """
    image = np.frombuffer(grid, np.uint8).reshape(GRID_SIDE, GRID_SIDE, 3).astype(np.float32)
    cells = np.frombuffer(other, np.uint8).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3).astype(np.float32)
    spans, weights, visible = _alignments(margin, COARSE_STEP)
    distance = _cell_differences(image, cells, (weights, visible), (weights, visible))
    y, x = _best(distance)
    best_y, best_x, best = spans[y], spans[x], float(distance[y, :, x].max())
    for step in FINE_STEPS:
        moves = np.array([(a, b) for a in (-step, 0, step) for b in (-step, 0, step)])
        ys, xs = best_y + moves, best_x + moves
        distance = _cell_differences(image, cells, _weights(ys), _weights(xs))
        y, x = _best(distance)
        best_y, best_x, best = ys[y], xs[x], float(distance[y, :, x].max())
    return best
