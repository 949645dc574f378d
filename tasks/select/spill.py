"""Records on disk, so that memory grows with the images and not with their candidates.

Two forms, both of numpy records in plain files that live no longer than the run (.run/select):

- `Spill`: partitions, appended to in any order and read one at a time.
- `SortedRuns`: sorted runs, read back as one sorted sequence, a bucket at a time. Records are sorted by (`major`,
  `hash`, `key`); the hash is uniform, so that equal pieces of its range hold about as many records each. A bucket is a
  range of (major, hash) cut to the memory at hand, and a run's part of it is found by binary search.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Bound = tuple[int, int]  # (major, hash): a bucket holds the records from one bound to before the next
HASHES = 1 << 64


@dataclass(frozen=True)
class WorkingMemory:
    """Memory for what grows with the candidates.

    Attributes:
        size_bytes: of the whole.
    """

    size_bytes: int

    def rows(self, row_bytes: int) -> int:
        """How many rows of `row_bytes` each it holds, at least one."""
        return max(1, self.size_bytes // row_bytes)

    def pieces(self, rows: int, row_bytes: int) -> int:
        """Into how many pieces `rows` rows are cut so that one fits, at least one."""
        return max(1, -(-rows // self.rows(row_bytes)))


def read_records(path: Path, dtype: np.dtype, start: int = 0, count: int = -1) -> np.ndarray:
    """Records of a file from the `start`-th on, (n,) of `dtype`; all that are left when `count` is -1."""
    return np.fromfile(path, dtype, count, offset=start * dtype.itemsize)


class Spill:
    """Records in partitions: one file each.

    Attributes:
        dtype: of the records.
        counts: (partitions,) int64, records of each.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype, partitions: int) -> None:
        """Files `<name>-<partition>` in `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name, self.dtype = folder, name, dtype
        self.counts = np.zeros(partitions, np.int64)

    def add(self, records: np.ndarray, partitions: np.ndarray) -> None:
        """Append records (m,) to partitions (m,); the order within a partition is that of the calls."""
        if len(self.counts) == 1:
            self.append(0, records)
            return
        order = np.argsort(partitions, kind="stable")
        counts = np.bincount(partitions, minlength=len(self.counts))
        ends = np.cumsum(counts)
        for number in np.flatnonzero(counts).tolist():
            self.append(number, records[order[ends[number] - counts[number] : ends[number]]])

    def append(self, number: int, records: np.ndarray) -> None:
        """Append records (m,) to one partition."""
        with open(self._path(number), "ab") as file:
            records.tofile(file)
        self.counts[number] += len(records)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number}"

    def read(self, number: int) -> np.ndarray:
        """The records of one partition."""
        path = self._path(number)
        return read_records(path, self.dtype) if path.exists() else np.zeros(0, self.dtype)

    def remove(self, number: int) -> None:
        """Delete one partition's file."""
        self._path(number).unlink(missing_ok=True)


class SortedRuns:
    """Sorted runs of records with the fields `major` (integer), `hash` (uint64, uniform) and `query`, `target`.

    Attributes:
        dtype: of the records.
    """

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        """Files `run-<n>` in `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self.dtype = folder, dtype
        self._lengths: list[int] = []
        self._majors: dict[int, int] = {}

    @staticmethod
    def order(records: np.ndarray) -> np.ndarray:
        """The indices that sort records by major, hash, query and target, (m,) int64."""
        return np.lexsort((records["target"], records["query"], records["hash"], records["major"]))

    def add(self, records: np.ndarray) -> None:
        """Add records in any order, as one run."""
        if len(records):
            records[self.order(records)].tofile(self._folder / f"run-{len(self._lengths)}")
            self._lengths.append(len(records))
            for major, count in zip(*np.unique(records["major"], return_counts=True), strict=True):
                self._majors[int(major)] = self._majors.get(int(major), 0) + int(count)

    def iter_buckets(self, rows: int) -> Iterator[np.ndarray]:
        """All records in order, about `rows` of them at a time."""
        starts = [0] * len(self._lengths)
        for bound in self._bounds(rows):
            parts = []
            for number, start in enumerate(starts):
                end = self._find(number, start, bound)
                parts.append(read_records(self._folder / f"run-{number}", self.dtype, start, end - start))
                starts[number] = end
            records = np.concatenate(parts)
            del parts
            yield records if len(self._lengths) == 1 else records[self.order(records)]

    def remove(self) -> None:
        """Delete the runs."""
        for number in range(len(self._lengths)):
            (self._folder / f"run-{number}").unlink(missing_ok=True)

    def _bounds(self, rows: int) -> Iterator[Bound]:
        """Where buckets end: majors together while they fit, one that does not fit cut by hash."""
        held = 0
        for major in sorted(self._majors):
            count = self._majors[major]
            if held and held + count > rows:
                yield major, 0
                held = 0
            pieces = -(-count // rows)
            for piece in range(1, pieces):
                yield major, HASHES * piece // pieces
            held = held + count if pieces == 1 else -(-count // pieces)
        if self._majors:
            yield max(self._majors) + 1, 0

    def _find(self, number: int, start: int, bound: Bound) -> int:
        """Index of a run's first record at or after a bound, from `start` on."""
        low, high, size = start, self._lengths[number], self.dtype.itemsize
        with open(self._folder / f"run-{number}", "rb") as file:
            while low < high:
                middle = (low + high) // 2
                record = np.frombuffer(os.pread(file.fileno(), size, middle * size), self.dtype)[0]
                if (int(record["major"]), int(record["hash"])) < bound:
                    low = middle + 1
                else:
                    high = middle
        return low
