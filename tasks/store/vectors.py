"""Embedding matrices: unit rows, memory-mapped shards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

import numpy as np


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, (n, d) float32; rows that are zero or not finite are left as they are."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(lengths) & (lengths > 0)
    return np.where(usable, vectors / np.where(usable, lengths, 1), vectors).astype(np.float32)


def good_rows(vectors: np.ndarray) -> np.ndarray:
    """Which rows are finite and of unit length, (n,) bool; float16 storage moves a length by up to 1e-3."""
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.linalg.norm(np.asarray(vectors, np.float64), axis=1)
        return np.isfinite(lengths) & (np.abs(lengths - 1) < 5e-3)


OPEN_MAPS = 256  # files of vectors


class MappedRows:
    """Rows of several files as one matrix (n, d) float16 that is never in memory as a whole: files are mapped when rows
    of theirs are asked for.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """`paths`: .npy files.

        Raises:
            DataError: they differ in width.
        """
        import numpy as np

        self._paths, self._maps = list(paths), OrderedDict[int, "np.ndarray"]()
        shapes = [self.block(n).shape for n in range(len(self._paths))]
        if len(widths := {shape[1] for shape in shapes}) > 1:
            raise DataError(
                f"{self._paths[0].parent}: vectors {sorted(widths)} wide in one index; embed all again with one model"
            )
        self.starts: np.ndarray = np.cumsum([0, *(shape[0] for shape in shapes)])
        self.shape, self.dtype = (int(self.starts[-1]), widths.pop() if widths else 1), np.dtype(np.float16)

    def __len__(self) -> int:
        return self.shape[0]

    def block(self, number: int) -> np.ndarray:
        """One file's rows, mapped. A map holds its file open, so that the oldest is let go when there are many."""
        import numpy as np

        if number in self._maps:
            self._maps.move_to_end(number)
        else:
            self._maps[number] = np.load(self._paths[number], mmap_mode="r", allow_pickle=False)
            if len(self._maps) > OPEN_MAPS:
                self._maps.popitem(last=False)
        return self._maps[number]

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """(m, d) float16, some rows; as np.ndarray.take along the first axis."""
        import numpy as np

        assert axis == 0
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        if len(rows) and numbers.min() == numbers.max():  # what lies together is asked for together, most of the time
            return np.asarray(self.block(int(numbers[0])).take(rows - self.starts[numbers[0]], axis=0))
        out = np.empty((len(rows), self.shape[1]), self.dtype)
        for number in np.unique(numbers).tolist():
            of = np.flatnonzero(numbers == number)
            out[of] = self.block(number)[rows[of] - self.starts[number]]
        return out

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        import numpy as np

        return self.take(np.arange(len(self))[rows])

    def gathered(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """(n, d) float16, all rows, or those of `chosen` (n,) bool; one file alone stays a map."""
        import numpy as np

        if len(self._paths) == 1 and chosen is None:
            return self.block(0)
        out = np.empty((len(self) if chosen is None else int(chosen.sum()), self.shape[1]), self.dtype)
        start = 0
        for number, first in enumerate(self.starts[:-1].tolist()):
            block = self.block(number)
            some = block if chosen is None else block[np.flatnonzero(chosen[first : first + len(block)])]
            out[start : start + len(some)] = some
            start += len(some)
        return out


@dataclass(frozen=True)
class EmbeddedCorpus:
    """What one encoder has embedded, in the shards' order.

    Attributes:
        ids: (n) strings, image ids.
        rows: (n, d) float16, mapped.
        revision: of the model.
        shards: stem of a shard -> its rows.
    """

    ids: pa.Array
    rows: MappedRows
    revision: str
    shards: dict[str, slice]
