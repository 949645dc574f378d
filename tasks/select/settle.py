"""From merged candidates to pairs: candidates in order of preference, then the quotas, in one pass over all.

Candidates go to disk as sorted runs, one for each partition of queries; the quotas' pass reads them back in order and
keeps a few numbers an image. What it decides goes to disk by pair id, the order in which pairs and dropped rows are
written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import MINER_ROLES, Params
from tasks.progress import Progress
from tasks.select.candidates import Candidates
from tasks.select.estimate import Estimated, PairEstimate
from tasks.select.negatives import Vectors, copy_limits, is_below, same_content_limits
from tasks.select.order import preference_classes, seeded_hashes
from tasks.select.quotas import QUOTAS, PublishedPairs, Quotas, take_selected
from tasks.select.ranges import MergedOnDisk, only_new, pack_ranks, rank_type, unpack_ranks
from tasks.select.spill import SortedRuns, Spill, WorkingMemory

if TYPE_CHECKING:
    import pyarrow as pa

BUCKET_ROW_BYTES = 300  # of memory for a candidate while quotas are settled
PAIR_ROW_BYTES = 200  # of memory for a pair or a dropped candidate while rows are written
# instead of a quota: the target is a copy of the query; it differs in more than the describer can say
COPY, TOO_DIFFERENT, SAME_CONTENT = -1, -2, -3
PER_QUERY = QUOTAS.index("pairs_per_query")


def pair_fields(top_k: int) -> list[tuple[str, ...] | tuple[str, np.dtype, int]]:
    """The fields of a pair's record: its id (16 bytes as two numbers), images and ranks."""
    ids = [("id_high", "<u8"), ("id_low", "<u8"), ("query", "<i4"), ("target", "<i4")]
    return [*ids, ("ranks", rank_type(top_k), len(MINER_ROLES))]


DROPPED = np.dtype([("id_high", "<u8"), ("id_low", "<u8"), ("query", "<i4"), ("target", "<i4"), ("quota", "i1")])


def pack_pairs(c: Candidates, dtype: np.dtype) -> np.ndarray:
    """Records of pairs with those of their fields that `dtype` has."""
    records = np.empty(len(c), dtype)
    ids = np.frombuffer(bytes.fromhex(c.pair_ids.tobytes().decode()), ">u8").reshape(-1, 2)
    records["id_high"], records["id_low"] = ids[:, 0], ids[:, 1]
    records["query"], records["target"] = c.queries, c.targets
    names = dtype.names or ()
    if "ranks" in names:
        records["ranks"] = pack_ranks(c.ranks, dtype["ranks"].base)
    if "reverse_ranks" in names:
        records["reverse_ranks"] = pack_ranks(c.reverse_ranks, dtype["reverse_ranks"].base)
    return records


def pair_ids(records: np.ndarray) -> np.ndarray:
    """(m,) 32-digit ASCII of records."""
    ids = np.empty((len(records), 2), ">u8")
    ids[:, 0], ids[:, 1] = records["id_high"], records["id_low"]
    return np.frombuffer(ids.tobytes().hex().encode(), "S32") if len(records) else np.zeros(0, "S32")


def unpack_pairs(image_ids: pa.Array, records: np.ndarray) -> Candidates:
    """The inverse of `pack_pairs`; a side that was not kept is without ranks."""
    ranks = unpack_ranks(records["ranks"])
    reverse = unpack_ranks(records["reverse_ranks"]) if "reverse_ranks" in (records.dtype.names or ()) else ranks
    result = Candidates(image_ids, records["query"].copy(), records["target"].copy(), ranks, reverse)
    result.__dict__["pair_ids"] = pair_ids(records)
    return result


class ByPairId:
    """Records of pairs on disk, read back by pair id."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, partitions: int) -> None:
        """Files in `folder`; ids are hashes, so partitions are about equal."""
        self._spill, self._partitions = Spill(folder, name, dtype, partitions), partitions

    def add(self, records: np.ndarray) -> None:
        """Add records in any order."""
        high = (records["id_high"] >> np.uint64(32)).astype(np.int64)
        self._spill.add(records, high * self._partitions >> 32)

    @property
    def total(self) -> int:
        """How many records there are."""
        return int(self._spill.counts.sum())

    def iter_sorted(self) -> Iterator[np.ndarray]:
        """The records by pair id, a partition at a time."""
        for number in np.flatnonzero(self._spill.counts).tolist():
            records = self._spill.read(number)
            yield records[np.lexsort((records["id_low"], records["id_high"]))]


@dataclass(frozen=True)
class Settled:
    """What becomes of the candidates.

    Attributes:
        pairs: those selected.
        copies: those whose target is a copy of the query.
        same_content: those whose target shows what the query shows, in another shot.
        too_different: those that the judge would hardly accept.
        over_quota: those that found a quota full.
        read: candidates, a count.
    """

    pairs: ByPairId
    copies: ByPairId
    same_content: ByPairId
    too_different: ByPairId
    over_quota: ByPairId
    read: int


@dataclass(frozen=True)
class Rules:
    """What decides about candidates.

    Attributes:
        params: all.
        published: earlier batches' pairs.
        vectors: stored vectors.
        is_new: (p,) bool, images of this batch, and queries that lost a pair.
        is_lost: (p,) bool, queries that lost a pair; None where nothing was taken down.
        sources: (p,) int64, the source of each image; None where no quota needs it.
        differences: estimates how many things differ between two images; None where there is no such estimate.
    """

    params: Params
    published: PublishedPairs
    vectors: Vectors
    is_new: np.ndarray
    is_lost: np.ndarray | None
    sources: np.ndarray | None
    differences: PairEstimate | None = None


def candidates_of_batch(merged: MergedOnDisk, rules: Rules) -> Iterator[Candidates]:
    """The candidates for this batch, all of a query at once."""
    for c in merged.iter_candidates():
        yield c if rules.is_lost is None else only_new(c, rules.is_new, rules.is_lost)


def settle(merged: MergedOnDisk, rules: Rules, memory: WorkingMemory, folder: Path) -> Settled:
    """Decide every candidate.

    Args:
        merged: the candidates.
        rules: what decides.
        memory: for a bucket of candidates, and for a partition of records by pair id.
        folder: for the records.
    """
    config, top_k = rules.params.select, rules.params.mine.neighbours
    partitions = memory.pieces(merged.total, PAIR_ROW_BYTES)
    pair_type = np.dtype(pair_fields(top_k))
    pairs = ByPairId(folder, "pairs", pair_type, partitions)
    names = ("copies", "same_content", "too_different", "over_quota")
    copies, same_content, too_different, over_quota = (ByPairId(folder, n, DROPPED, partitions) for n in names)
    copies_from = copy_limits(rules.params) if config.drop_query_copies else None
    same_from = same_content_limits(config)
    order_fields = [("major", "<i4"), ("hash", "<u8"), *pair_fields(top_k)]
    if config.both_directions:
        order_fields.append(("reverse_ranks", rank_type(top_k), len(MINER_ROLES)))
    runs, read = SortedRuns(folder, np.dtype(order_fields)), 0
    for c in candidates_of_batch(merged, rules):
        read += len(c)
        for limits, dropped, code in ((copies_from, copies, COPY), (same_from, same_content, SAME_CONTENT)):
            if limits is not None:
                is_distinct = _is_below(c, rules.vectors, limits, memory)
                dropped.add(_dropped(c.take(~is_distinct), np.int8(code)))
                c = c.take(is_distinct)
        estimated = None
        if rules.differences is not None:
            estimated = rules.differences.estimate(c)
            is_likely = estimated.acceptance >= config.accepted_min
            too_different.add(_dropped(c.take(~is_likely), np.int8(TOO_DIFFERENT)))
            c, estimated = c.take(is_likely), estimated.take(is_likely)
        runs.add(_in_order(c, rules, runs.dtype, over_quota, estimated))
    quotas = Quotas(rules.published, config, rules.is_new, rules.sources)
    progress = Progress("select", read, "candidates")
    for records in runs.iter_buckets(memory.rows(BUCKET_ROW_BYTES)):
        c = unpack_pairs(merged.mined.image_ids, records)
        decisions = quotas.settle(c)
        pairs.add(pack_pairs(take_selected(c, decisions), pair_type))
        is_rejected = decisions >= 0
        over_quota.add(_dropped(c.take(is_rejected), decisions[is_rejected]))
        progress.advance(len(c))
    runs.remove()
    return Settled(pairs, copies, same_content, too_different, over_quota, read)


def _is_below(c: Candidates, vectors: Vectors, limits: np.ndarray, memory: WorkingMemory) -> np.ndarray:
    """(m,) bool: `is_below` of candidates, a block of them in memory at a time."""
    rows, result = memory.rows(100 + 2 * vectors.row_bytes), np.empty(len(c), bool)
    for start in range(0, len(c), rows):
        block = slice(start, start + rows)
        result[block] = is_below(c.queries[block], c.targets[block], vectors, limits)
    return result


def _in_order(
    c: Candidates, rules: Rules, dtype: np.dtype, over_quota: ByPairId, estimated: Estimated | None
) -> np.ndarray:
    """Records of the candidates that the quotas are to settle, with what orders them.

    Published pairs are left out. A query that is full of published pairs takes no more, whatever comes before it: this
    settles most of a week's candidates at once. With a limit a batch the quota that is reported depends on the order.
    """
    config = rules.params.select
    hashes = seeded_hashes(c.pair_ids, rules.params.open_run.seed)
    records = pack_pairs(c, dtype)
    records["major"], records["hash"] = preference_classes(c, hashes, rules.params, estimated), hashes
    is_left = ~rules.published.contains(c.queries, c.targets)
    if config.pairs_per_batch is None:
        is_full = is_left & (rules.published.as_query >= config.pairs_per_query)[c.queries]
        over_quota.add(_dropped(c.take(is_full), np.int8(PER_QUERY)))
        is_left &= ~is_full
    return records if is_left.all() else records[is_left]


def _dropped(c: Candidates, quotas: np.ndarray | np.int8) -> np.ndarray:
    """Records of dropped candidates; `quotas`: (m,) or one for all, which of QUOTAS was full, or COPY and its like."""
    records = pack_pairs(c, DROPPED)
    records["quota"] = quotas
    return records
