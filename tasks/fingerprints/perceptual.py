"""Near-duplicates: a perceptual hash proposes, a small colour thumbnail decides.

Pure functions. A 64-bit hash of the grey image (which of its low DCT frequencies lie above their median) is cheap to
compare with a whole corpus, but images that differ by one edit often share it: a recoloured object keeps its grey. So a
match of the hashes is only a candidate; it is a copy when no cell of the two 8x8 RGB thumbnails differs by more than a
few levels: re-encoding and resizing change every cell a little, an edit changes a few cells a lot.

Measured on the sample world, 1,500 copies (JPEG quality 65-88, 80-160 px) and 3,004 images that differ by one edit:
share of copies found / of edited images wrongly called copies. Hash 12 bits and thumbnails 6.0: .9947/0; 12 and 8.0:
.9973/0; 16 and 8.0: .9980/0 (in use); 16 and 10.0: .9980/.0020; 16 and 12.0: .9980/.0053. Finer thumbnails are worse:
with 16x16 the best is .9887/.0003 (16 and 16.0), because the change of an edge by resizing fills a small cell.
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
_HASH_SIDE = 32  # px of the grey image that is hashed


@cache
def _cosines() -> np.ndarray:
    """First 8 rows of the DCT-II of length 32, (8, 32) float64, without the scale."""
    k, x = np.arange(8)[:, None], np.arange(_HASH_SIDE)[None, :]
    return np.cos(np.pi * k * (2 * x + 1) / (2 * _HASH_SIDE))


def reduced(image: Image) -> Image:
    """The image at a quarter of its sides, means of 4x4 px, where both have 256 px or more; else the image itself.

    Everything else here is then computed from a sixteenth of the pixels.
    """
    return image.reduce(4) if min(image.size) >= 256 else image


def color_grid(image: Image) -> Image:
    """64x64 RGB means of the image, for `crop_distance`.

    Hash and thumbnail are not computed from these means: 87% of copies were found that way.
    """
    from PIL import Image as Pillow

    return reduced(image).convert("RGB").resize((GRID_SIDE, GRID_SIDE), Pillow.Resampling.BOX)


def coarse_grey(image: Image) -> np.ndarray:
    """(32, 32) float64: grey means of the image."""
    from PIL import Image as Pillow

    return np.asarray(reduced(image).convert("L").resize((_HASH_SIDE, _HASH_SIDE), Pillow.Resampling.BOX), np.float64)


def perceptual_hash(image: Image) -> int:
    """64 bits: which of the 8x8 lowest DCT coefficients of the grey image lie above their median."""
    return hash_grey(coarse_grey(image))


def hash_grey(grey: np.ndarray) -> int:
    """`perceptual_hash` from the (32, 32) means of `coarse_grey`."""
    low = np.round(_cosines() @ grey @ _cosines().T, 3).ravel()  # rounded: the same bits on every machine
    low[0] = 0.0  # the mean brightness is independent of the content's shape
    middle = np.sort(low)[31:33]
    bits = low > (middle[0] + middle[1]) / 2  # the median
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(image: Image) -> bytes:
    """8x8 RGB means of the image, 192 bytes."""
    from PIL import Image as Pillow

    return reduced(image).convert("RGB").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Pillow.Resampling.BOX).tobytes()


def thumbnail_distance(one: bytes, others: np.ndarray) -> np.ndarray:
    """Largest difference of a cell of two thumbnails: mean absolute difference over R, G, B, 0..255.

    Args:
        one: a thumbnail, 192 bytes.
        others: (n, 192) uint8.
    Returns:
        (n,) float64.
    """
    a = np.frombuffer(one, np.uint8).astype(np.int16)
    difference = np.abs(others.astype(np.int16) - a).reshape(len(others), -1, 3).mean(axis=2)
    return difference.max(axis=1) if len(others) else np.zeros(0)


def hash_hits(
    hashes: np.ndarray, known: np.ndarray, *, distance_bits: int, block: int = 1 << 22
) -> Iterator[tuple[int, np.ndarray]]:
    """For each hash the known ones within a Hamming distance.

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
