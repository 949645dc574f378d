"""How alike two images' captions are, word by word: what the estimate of their differences reads beside the cosines.

A caption's signature is its hashed word counts and its hashed runs of 2 to 3 and of 4 to 6 words. It depends on the
caption alone, so that no later image changes an earlier pair's estimate; an inverse document frequency would.
Signatures lie in a file of the run: a block of pairs reads those of its images and no more stays in memory.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.select.spill import WorkingMemory
from tasks.store import Store
from tasks.store.id_order import index_in_ids

if TYPE_CHECKING:
    import pyarrow as pa

# (shortest run, longest run, numbers): single words as counts, longer runs as signed counts of unit length
RUNS = ((1, 1, 256), (2, 3, 256), (4, 6, 256))
SIZE = sum(size for *_, size in RUNS)
INPUTS = ("word_difference", "short_runs", "long_runs")  # what `compare` returns, in order
CAPTION_BYTES = 6 * SIZE  # of memory for a caption while its signature is made


def _hashed(text: str, size: int) -> tuple[int, int]:
    """(index below size, sign) of a run of words."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return (number >> 1) % size, 1 if number & 1 else -1


def signature(caption: str) -> np.ndarray:
    """(SIZE,) float16 of one caption; words are compared in lower case, without punctuation."""
    words = re.findall(r"\w+", caption.lower())
    result = np.zeros(SIZE, np.float32)
    start = 0
    for shortest, longest, size in RUNS:
        part = result[start : start + size]
        start += size
        runs = Counter(
            " ".join(words[at : at + length])
            for length in range(shortest, longest + 1)
            for at in range(len(words) - length + 1)
        )
        for run, count in runs.items():
            index, sign = _hashed(run, size)
            part[index] += count if longest == 1 else sign * count
        if longest > 1 and (norm := float(np.linalg.norm(part.astype(np.float64)))):
            part /= norm
    return np.minimum(result, 60_000).astype(np.float16)


def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(m, 4) float64 of signatures (m, SIZE) each: INPUTS.

    word_difference: ln(1 + words that only one caption has); short_runs, long_runs: cosines of the runs.
    """
    result = np.empty((len(a), len(RUNS)))
    start = 0
    for n, (_, longest, size) in enumerate(RUNS):
        x, y = (rows[:, start : start + size].astype(np.float32) for rows in (a, b))
        start += size
        result[:, n] = np.log1p(np.abs(x - y).sum(axis=1)) if longest == 1 else (x * y).sum(axis=1)
    return result


class Captions:
    """Signatures of the captions of images that are indices into the sorted ids, in a file."""

    def __init__(self, path: Path, count: int) -> None:
        """A file at `path` for `count` images, none of which has a caption yet."""
        self._path, self._shape = path, (max(count, 1), SIZE)
        self.has_caption = np.zeros(count, bool)
        np.memmap(path, np.float16, "w+", shape=self._shape).flush()

    def add(self, images: np.ndarray, captions: Iterable[str]) -> None:
        """Write the signatures of images (m,) by their captions."""
        rows = [signature(caption) for caption in captions]
        if rows:
            file = np.memmap(self._path, np.float16, "r+", shape=self._shape)
            file[images] = np.stack(rows)
            file.flush()
            self.has_caption[images] = True

    def take(self, images: np.ndarray) -> np.ndarray:
        """(m, SIZE) float16, in memory; zeros without a caption."""
        return np.array(np.memmap(self._path, np.float16, "r", shape=self._shape)[images])

    def compare(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """`compare` of images a (m,) and b (m,); NaN where one has no caption."""
        result = compare(self.take(a), self.take(b))
        result[~(self.has_caption[a] & self.has_caption[b])] = np.nan
        return result


def read_captions(store: Store, image_ids: pa.Array, path: Path, memory: WorkingMemory) -> Captions:
    """The signatures of some images' captions: those of their sources, or those that stage recaption wrote.

    Args:
        store: to read from.
        image_ids: (p) strings, sorted.
        path: of the file of signatures.
        memory: for a block of captions.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    result = Captions(path, len(image_ids))
    for table in ("images", "captions"):
        files = store.table_files(table)
        for block in store.iter_blocks(files, table, ["image_id", "caption"], rows=memory.rows(CAPTION_BYTES)):
            image = index_in_ids(block.column("image_id"), image_ids)
            is_stated = pc.fill_null(pc.greater(pc.utf8_length(block.column("caption")), 0), False)
            is_new = (image >= 0) & np.asarray(is_stated.to_numpy())
            is_new[is_new] = ~result.has_caption[image[is_new]]
            rows = np.flatnonzero(is_new)
            result.add(image[rows], block.column("caption").take(pa.array(rows)).to_pylist())
    return result
