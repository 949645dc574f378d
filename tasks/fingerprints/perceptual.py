"""Near-duplicates: a perceptual hash proposes, a small colour thumbnail decides.

Pure functions. A 64-bit hash of the grey picture (signs of its low DCT frequencies) is cheap to compare with a whole
corpus, but one-edit relatives often share it: a recoloured object keeps its grey. So a hash hit is only
a candidate; it is a copy when no cell of the two 8x8 RGB thumbnails differs by more than a few levels: re-encoding and
resizing move every cell a little, an edit moves a few cells a lot.

Measured on the sample world, 1,500 copies (JPEG quality 65-88, 80-160 px) and 3,004 one-edit relatives, share of copies
caught / of relatives lost: hash 12 bits and thumbnails 6.0 .9947/0; 12 and 8.0 .9973/0; 16 and 8.0 .9980/0 (in use); 16 and
10.0 .9980/.0020; 16 and 12.0 .9980/.0053. Finer thumbnails are worse: with 16x16 the best is .9887/.0003 (16 and 16.0),
because what resizing does to an edge fills a small cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_SIDE = 8  # cells
GRID_SIDE = 64  # cells
_HASH_SIDE = 32  # px of the grey picture that is hashed


@cache
def _cosines() -> np.ndarray:
    """First 8 rows of the DCT-II of length 32, (8, 32) float64, without the scale."""
    k, x = np.arange(8)[:, None], np.arange(_HASH_SIDE)[None, :]
    return np.cos(np.pi * k * (2 * x + 1) / (2 * _HASH_SIDE))


def reduced(image: Image) -> Image:
    """A quarter of the picture's sides, means of 4x4 px, where both have 256 px or more: all else here is then made from a sixteenth of the pixels."""
    return image.reduce(4) if min(image.size) >= 256 else image


def grid_of(image: Image) -> Image:
    """64x64 RGB means of the picture, for `crop_distance`. Not for hash and thumbnail: made from these means, 87% of copies were caught."""
    from PIL import Image as Pillow

    return reduced(image).convert("RGB").resize((GRID_SIDE, GRID_SIDE), Pillow.Resampling.BOX)


def coarse_grey(image: Image) -> np.ndarray:
    """(32, 32) float64: grey means of the picture."""
    from PIL import Image as Pillow

    return np.asarray(reduced(image).convert("L").resize((_HASH_SIDE, _HASH_SIDE), Pillow.Resampling.BOX), np.float64)


def perceptual_hash(image: Image) -> int:
    """64 bits: which of the 8x8 lowest DCT coefficients of the grey picture lie above their median."""
    return hash_of_grey(coarse_grey(image))


def hash_of_grey(grey: np.ndarray) -> int:
    """The same, from `coarse_grey`."""
    low = np.round(_cosines() @ grey @ _cosines().T, 3).ravel()  # rounded: the same bits on every machine
    low[0] = 0.0  # the mean brightness says nothing about form
    middle = np.sort(low)[31:33]
    bits = low > (middle[0] + middle[1]) / 2  # the median
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(image: Image) -> bytes:
    """8x8 RGB means of the picture, 192 bytes."""
    from PIL import Image as Pillow

    return reduced(image).convert("RGB").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Pillow.Resampling.BOX).tobytes()


def thumbnail_distance(one: bytes, others: np.ndarray) -> np.ndarray:
    """Largest cell difference, mean absolute over R, G, B, 0..255.

    Args:
        one: 192 bytes.
        others: (n, 192) uint8.
    Returns:
        (n,) float64.
    """
    a = np.frombuffer(one, np.uint8).astype(np.int16)
    difference = np.abs(others.astype(np.int16) - a).reshape(len(others), -1, 3).mean(axis=2)
    return difference.max(axis=1) if len(others) else np.zeros(0)


def hash_hits(hashes: np.ndarray, known: np.ndarray, *, distance_bits: int, block: int = 1 << 22) -> Iterator[tuple[int, np.ndarray]]:
    """For each new hash the known ones within the Hamming distance.

    Args:
        hashes: (m,) uint64.
        known: (n,) uint64.
        distance_bits: largest distance, bits.
        block: comparisons at a time, which bounds the memory.
    Yields:
        (row of `hashes`, rows of `known` in rising order), for each row in order.
    """
    step = max(1, block // max(1, len(known)))
    for start in range(0, len(hashes), step):
        near = np.bitwise_count(hashes[start : start + step, None] ^ known[None, :]) <= distance_bits  # (step, n)
        for row, hits in enumerate(near):
            yield start + row, np.flatnonzero(hits)


@cache
def _spans(margin: float, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the other picture's 8 cells may lie on this one's 64, one axis.

    Returns:
        spans (h, 2): start and end of the other picture, in sides of this one; weights (h, 8, 64) of means; visible (h, 8): share of a cell within.
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


def _aligned(grid: np.ndarray, cells: np.ndarray, ys: tuple[np.ndarray, np.ndarray], xs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(h_y, h_x, 8, 8) mean absolute RGB difference of each cell under each alignment; cells less than 80% visible count 0."""
    wide = np.einsum("hir,rcx->hicx", ys[0], grid, optimize=True)  # (h_y, 8, 64, 3)
    means = np.einsum("hicx,gjc->hgijx", wide, xs[0], optimize=True)  # (h_y, h_x, 8, 8, 3)
    difference = np.abs(means - cells).mean(axis=4)
    seen = (ys[1] >= 0.8)[:, None, :, None] & (xs[1] >= 0.8)[None, :, None, :]
    return np.where(seen, difference, 0.0)


def crop_distance(grid: bytes, other: bytes, *, margin: float) -> float:
    """Largest cell difference at the best alignment of a picture with the thumbnail of another that shows a little more or less of it.

    Each side may be moved by up to `margin`: first on a raster of 2%, judged by the mean over the cells, then finer around the best.

    Args:
        grid: 64x64 RGB means of the picture, 12,288 bytes.
        other: 8x8 thumbnail of the other one, 192 bytes.
        margin: furthest move of a side, share of it.
    Returns:
        mean absolute RGB difference of the worst cell, 0..255.
    """
    picture = np.frombuffer(grid, np.uint8).reshape(GRID_SIDE, GRID_SIDE, 3).astype(np.float32)
    cells = np.frombuffer(other, np.uint8).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3).astype(np.float32)
    spans, weights, visible = _spans(margin, 0.02)
    distance = _aligned(picture, cells, (weights, visible), (weights, visible))
    y, x = np.unravel_index(int(distance.mean(axis=(2, 3)).argmin()), distance.shape[:2])
    best_y, best_x, best = spans[y], spans[x], float(distance[y, x].max())
    for step in (0.01, 0.005):
        moves = np.array([(a, b) for a in (-step, 0, step) for b in (-step, 0, step)])
        ys, xs = best_y + moves, best_x + moves
        distance = _aligned(picture, cells, _weights(ys), _weights(xs))
        y, x = np.unravel_index(int(distance.mean(axis=(2, 3)).argmin()), distance.shape[:2])
        best_y, best_x, best = ys[y], xs[x], float(distance[y, x].max())
    return best
