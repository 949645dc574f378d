"""Encode items a batch at a time, while threads read the next batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tasks.knn.unit_rows import are_unit_rows


class LazyImages(Sequence[Any]):
    """Images that are opened when a slice of them is read, so that few batches are in memory."""

    def __init__(self, ids: Sequence[str], open_image: Callable[[str], Any]) -> None:
        """`open_image`: image id -> what the encoder takes."""
        self.ids, self.open_image = ids, open_image

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return [self.open_image(i) for i in self.ids[index]]


def encode_in_batches(
    items: Sequence[Any],
    encode: Callable[[Sequence[Any]], np.ndarray],
    batch_size: int,
    width: int | None = None,
    readers: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of all items, a fixed batch at a time; the next batches are read while one is encoded.

    Args:
        items: (n) what `encode` takes; other threads slice it.
        encode: items -> (b, d) float32, unit rows.
        batch_size: items in one call, a count.
        width: d of the vectors that are stored already; the first batch's when None.
        readers: threads, a count; each reads one batch ahead, so as many batches are in memory beside the one that is
            encoded.
    Returns:
        vectors (n, d) float16, and (n,) bool, which of them are usable: of unit length, and as wide as the others.
    """
    starts = range(0, len(items), batch_size)
    if not starts:
        return np.zeros((0, width or 1), np.float16), np.zeros(0, bool)
    blocks, usable = [], []
    with ThreadPoolExecutor(readers) as pool:
        pending = deque(pool.submit(items.__getitem__, slice(start, start + batch_size)) for start in starts[:readers])
        for start in starts:
            batch = pending.popleft().result()
            if (later := start + readers * batch_size) < len(items):
                pending.append(pool.submit(items.__getitem__, slice(later, later + batch_size)))
            block = encode(batch).astype(np.float16)
            width = block.shape[1] if width is None else width
            if block.shape[1] == width:
                blocks.append(block)
                usable.append(are_unit_rows(block))
            else:
                blocks.append(np.zeros((len(block), width), np.float16))
                usable.append(np.zeros(len(block), bool))
    return np.concatenate(blocks), np.concatenate(usable)
