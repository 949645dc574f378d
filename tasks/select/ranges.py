"""Merge the encoders' candidates partition by partition, through files: memory for one partition at a time.

A candidate's own ranks lie in its query's partition, the ranks of its other direction in its target's: each merged row
is written twice, once for either, and joined when its partition is read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.config import MINER_ROLES
from tasks.select.candidates import (
    ABSENT,
    Candidates,
    MergedRows,
    MinedRows,
    merge_encoders,
    rank_among_all,
    with_reverse_ranks,
)
from tasks.select.negatives import RetrievedFile
from tasks.select.read_neighbours import EARLIER, LOST, NEW, MinedOnDisk, rank_new
from tasks.select.spill import Spill

NO_RANK = np.iinfo(np.uint16).max  # ABSENT in two bytes


def rank_type(top_k: int) -> np.dtype:
    """The smallest type that holds the ranks of `top_k` neighbours, and one more for ABSENT."""
    return np.dtype("<u2") if top_k < NO_RANK else np.dtype("<i4")


def pack_ranks(ranks: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Ranks (m, 4) int32 in a smaller type."""
    return np.where(ranks == ABSENT, np.iinfo(dtype).max, ranks).astype(dtype)


def unpack_ranks(packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_ranks`."""
    return np.where(packed == np.iinfo(packed.dtype).max, np.int32(ABSENT), packed.astype(np.int32))


@dataclass(frozen=True)
class MergedOnDisk:
    """The candidates of all encoders, merged.

    Attributes:
        mined: what they were merged from; its rows are deleted.
        retrieved: encoder -> neighbours of each image in any batch.
        counts: encoder -> this batch's candidates.
        total: merged candidates.
        forward: by the partition of the query: `key`, `ranks`, `similarities` where they are kept.
        reverse: by the partition of the target: the `key` of the other direction, `ranks`.
    """

    mined: MinedOnDisk
    retrieved: dict[str, RetrievedFile]
    counts: dict[str, int]
    total: int
    forward: Spill
    reverse: Spill

    def iter_candidates(self) -> Iterator[Candidates]:
        """The candidates, all of a query at once; each partition's rows are deleted when they are read."""
        for number in range(self.mined.partitions):
            rows, reverse = self.forward.read(number), self.reverse.read(number)
            self.forward.remove(number)
            self.reverse.remove(number)
            if not len(rows):
                continue
            reverse = reverse[np.argsort(reverse["key"])]
            similarities = None
            if "similarities" in (rows.dtype.names or ()):
                similarities = rows["similarities"].astype(np.float64)
            merged = MergedRows(rows["key"].copy(), unpack_ranks(rows["ranks"]), similarities)
            del rows
            yield with_reverse_ranks(
                self.mined.image_ids, merged, reverse["key"].copy(), unpack_ranks(reverse["ranks"])
            )

    def close(self) -> None:
        """Close the files of neighbours."""
        for retrieved in self.retrieved.values():
            retrieved.close()


def merge_on_disk(mined: MinedOnDisk, top_k: int, folder: Path, with_similarities: bool) -> MergedOnDisk:
    """Rank and merge the encoders' rows, a partition at a time.

    Args:
        mined: the rows.
        top_k: `mine.neighbours`, a count.
        folder: for the merged rows.
        with_similarities: whether their cosines are kept.
    """
    count, encoders = len(mined.image_ids), mined.encoders
    fields = [("key", "<i8"), ("ranks", rank_type(top_k), len(MINER_ROLES))]
    reverse = Spill(folder, "reverse", np.dtype(fields), mined.partitions)
    if with_similarities:
        fields.append(("similarities", "<f4", len(MINER_ROLES)))
    forward = Spill(folder, "forward", np.dtype(fields), mined.partitions)
    retrieved = {encoder: RetrievedFile(folder / f"{encoder}-retrieved", count) for encoder in encoders}
    counts, total = dict.fromkeys(encoders, 0), 0
    for number in range(mined.partitions):
        ranked = {}
        for encoder in encoders:
            new, earlier = (mined.read(encoder, kind, number) for kind in (NEW, EARLIER))
            retrieved[encoder].add(new.concatenated(earlier))
            rows = rank_new(new, earlier, top_k, is_as_mined=not mined.has(encoder, EARLIER))
            counts[encoder] += len(rows.queries)
            ranked[encoder] = rows.concatenated(_rank_lost(mined.read(encoder, LOST, number), top_k))
        mined.remove(number)
        merged = merge_encoders(count, ranked, with_similarities)
        del ranked
        total += len(merged.keys)
        _spill(merged, mined, number, forward, reverse)
    return MergedOnDisk(mined, retrieved, counts, total, forward, reverse)


def _rank_lost(lost: MinedRows, top_k: int) -> MinedRows:
    """The rows of queries that lost a pair, ranked among themselves."""
    return rank_among_all(lost, lost.take(np.zeros(0, np.int64)), top_k)


def _spill(merged: MergedRows, mined: MinedOnDisk, number: int, forward: Spill, reverse: Spill) -> None:
    """Write merged rows of one partition, and what they mean to their targets' partitions."""
    rows = np.empty(len(merged.keys), forward.dtype)
    rows["key"], rows["ranks"] = merged.keys, pack_ranks(merged.ranks, forward.dtype["ranks"].base)
    if merged.similarities is not None:
        rows["similarities"] = merged.similarities
    forward.append(number, rows)
    count = max(len(mined.image_ids), 1)
    queries, targets = np.divmod(merged.keys, count)
    other = np.empty(len(rows), reverse.dtype)
    other["key"], other["ranks"] = targets * count + queries, rows["ranks"]
    reverse.add(other, mined.partition[targets])


def only_new(c: Candidates, is_new: np.ndarray, is_lost: np.ndarray) -> Candidates:
    """Candidates without those that rank next in place of a neighbour that was taken down, which are for queries that
    lost a pair, and for later images.

    Args:
        c: candidates.
        is_new: (p,) bool, images of this batch, and queries that lost a pair.
        is_lost: (p,) bool, queries that lost a pair.
    """
    return c.take(is_new[c.queries] | (is_new & ~is_lost)[c.targets])
