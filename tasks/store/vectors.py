"""Embedding matrices on disk: the .npy files of an encoder's shards, memory-mapped as one matrix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

OPEN_MAPS = 256  # memory-mapped files that are open at a time


class MappedRows:
    """Rows of several .npy files as one matrix (n, d) float16 that is never in memory as a whole.

    A file is mapped when its rows are read. The class has the interface of `tasks.knn.exact.Rows`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """`paths`: .npy files, in the order of their rows.

        Raises:
            DataError: they differ in width.
        """
        self._paths, self._maps = list(paths), OrderedDict[int, np.ndarray]()
        shapes = [self.file_rows(n).shape for n in range(len(self._paths))]
        if len(widths := {shape[1] for shape in shapes}) > 1:
            raise DataError(
                f"{self._paths[0].parent}: vectors {sorted(widths)} wide in one index; embed all again with one model"
            )
        self.starts: np.ndarray = np.cumsum([0, *(shape[0] for shape in shapes)])
        self.shape, self.dtype = (int(self.starts[-1]), widths.pop() if widths else 1), np.dtype(np.float16)

    def __len__(self) -> int:
        return self.shape[0]

    def file_rows(self, number: int) -> np.ndarray:
        """The rows of one file, memory-mapped. A map holds its file open, so beyond OPEN_MAPS the oldest is closed."""
        if number in self._maps:
            self._maps.move_to_end(number)
        else:
            self._maps[number] = np.load(self._paths[number], mmap_mode="r", allow_pickle=False)
            if len(self._maps) > OPEN_MAPS:
                self._maps.popitem(last=False)
        return self._maps[number]

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        """Some rows, (m, d) float16; like np.ndarray.take along the first axis."""
        assert axis == 0
        files = np.searchsorted(self.starts, rows, side="right") - 1
        if len(rows) and files.min() == files.max():  # rows of one file: the most frequent case
            return np.asarray(self.file_rows(int(files[0])).take(rows - self.starts[files[0]], axis=0))
        result = np.empty((len(rows), self.shape[1]), self.dtype)
        for number in np.unique(files).tolist():
            at = np.flatnonzero(files == number)
            result[at] = self.file_rows(number)[rows[at] - self.starts[number]]
        return result

    def take_sorted(self, rows: np.ndarray) -> np.ndarray:
        """Rows by rising index, (m, d) float16. Each file is mapped while its own rows are copied and no longer: beside
        the result the memory holds pages of one file."""
        result = np.empty((len(rows), self.shape[1]), self.dtype)
        ends = np.searchsorted(rows, self.starts)
        for number in np.flatnonzero(np.diff(ends)).tolist():
            part = slice(ends[number], ends[number + 1])
            file = np.load(self._paths[number], mmap_mode="r", allow_pickle=False)
            np.take(file, rows[part] - self.starts[number], axis=0, out=result[part])
        return result

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.take(np.arange(len(self))[rows])

    def to_array(self, mask: np.ndarray | None = None) -> np.ndarray:
        """All rows, or those where `mask` (n,) bool is set, as (m, d) float16; all rows of one file stay mapped."""
        if len(self._paths) == 1 and mask is None:
            return self.file_rows(0)
        result = np.empty((len(self) if mask is None else int(mask.sum()), self.shape[1]), self.dtype)
        start = 0
        for number, first in enumerate(self.starts[:-1].tolist()):
            rows = self.file_rows(number)
            if mask is not None:
                rows = rows[np.flatnonzero(mask[first : first + len(rows)])]
            result[start : start + len(rows)] = rows
            start += len(rows)
        return result


@dataclass(frozen=True)
class EmbeddedCorpus:
    """All that one encoder has embedded, in the order of the shards.

    Attributes:
        ids: (n) strings, image ids.
        rows: (n, d) float16, memory-mapped.
        revision: of the model that made the vectors.
        shards: stem of a shard -> its rows.
    """

    ids: pa.Array
    rows: MappedRows
    revision: str
    shards: dict[str, slice]
