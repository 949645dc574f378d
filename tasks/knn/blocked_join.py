"""The exact blocked join: each block of pairs passes the prefilter once; what passes is scored exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tasks.knn.choose_prefilter import choose_prefilter
from tasks.knn.codes import CodedRows
from tasks.knn.exact import exact_similarity_at
from tasks.knn.join_input import JoinSides, PairBlock
from tasks.knn.neighbours import Neighbours, rank_order
from tasks.knn.prefilter import QUERY_ROWS, Prefilter
from tasks.knn.spec import SearchSpec, in_window

# candidates that are added before the collector counts those beyond the k-th, which reads every row's count
CHECK_INTERVAL = 1 << 17
ENTRY_BYTES = 80  # memory of one candidate while the collector sorts it


class _Candidates(NamedTuple):
    """Candidates of the rows `first` to `last`: rows and targets (m,) int32, similarities (m,) float64."""

    first: int
    last: int
    rows: np.ndarray
    targets: np.ndarray
    similarities: np.ndarray


@dataclass
class _Collector:
    """The k best candidates of each row so far.

    Attributes:
        thresholds: (n,) float64, similarity that a row's next candidate must reach: the window's low end; once a row
            has top_k neighbours, its threshold rises to the k-th similarity; inf for rows that collect no neighbours.
            Updated in place.
        tie_rank: (n,) int64, rank of the targets' ids.
        top_k: most neighbours of a row, a count.
        memory_mib: of the candidates, with what sorting them takes.
    """

    thresholds: np.ndarray
    tie_rank: np.ndarray
    top_k: int
    memory_mib: int
    _parts: list[_Candidates] = field(default_factory=list)
    _stored: int = 0
    _since_check: int = 0

    def __post_init__(self) -> None:
        self._counts = np.zeros(len(self.thresholds), np.int64)
        # some row asks for more than the window's low end
        self._thresholds_differ = bool((self.thresholds != self.thresholds.min(initial=np.inf)).any())
        self._limit = (self.memory_mib << 20) // 2 // ENTRY_BYTES

    def offer(self, block: np.ndarray, rows: np.ndarray, targets: np.ndarray, similarities: np.ndarray) -> None:
        """Add candidates inside the window.

        Args:
            block: rows that the candidates may belong to, rising.
            rows, targets, similarities: (m,) each; each (row, target) comes once over the whole join.
        """
        if self._thresholds_differ:
            is_near = similarities >= self.thresholds[rows]
            if not is_near.all():
                rows, targets, similarities = rows[is_near], targets[is_near], similarities[is_near]
        if not len(rows):
            return
        self._parts.append(
            _Candidates(int(block[0]), int(block[-1]), rows.astype(np.int32), targets.astype(np.int32), similarities)
        )
        np.add.at(self._counts, rows, 1)
        self._stored += len(rows)
        self._since_check += len(rows)
        interval = CHECK_INTERVAL if self._stored > self._limit else max(CHECK_INTERVAL, self._stored // 4)
        if self._since_check >= interval:
            self._since_check = 0
            surplus = int(np.maximum(self._counts - self.top_k, 0).sum())
            if 2 * surplus >= self._stored or (self._stored > self._limit and surplus):
                self._compact()

    def _compact(self) -> list[np.ndarray]:
        """Drop what is beyond the k-th, and sort the rest. Returns the ranks of each part.

        Rows come a block at a time, so the candidates fall into disjoint ranges of rows; each range is sorted on its
        own, in cache.
        """
        ranges: list[list[_Candidates]] = []
        last = -1
        for part in sorted(self._parts, key=lambda p: p.first):
            if part.first > last:
                ranges.append([])
            ranges[-1].append(part)
            last = max(last, part.last)
        self._parts, ranks = [], []
        for parts in ranges:
            part, rank = self._top_k_of_range(parts)
            self._parts.append(part)
            ranks.append(rank)
        self._stored = sum(len(p.rows) for p in self._parts)
        return ranks

    def _top_k_of_range(self, parts: Sequence[_Candidates]) -> tuple[_Candidates, np.ndarray]:
        """The parts of one range of rows as one part, by row, then rank, up to the k-th; and the ranks."""
        first, last = parts[0].first, max(p.last for p in parts)
        rows, targets, similarities = (
            np.concatenate(c) for c in zip(*((p.rows, p.targets, p.similarities) for p in parts), strict=True)
        )
        rows -= first
        order = rank_order(rows, similarities, targets, self.tie_rank)
        counts = np.bincount(rows, minlength=last - first + 1)
        rows = np.repeat(np.arange(first, last + 1, dtype=np.int32), counts)
        targets, similarities = targets[order], similarities[order]
        rank = np.arange(len(rows), dtype=np.int32) - np.repeat((np.cumsum(counts) - counts).astype(np.int32), counts)
        if self.top_k < int(counts.max()):
            is_top = rank < self.top_k
            rows, targets, similarities, rank = rows[is_top], targets[is_top], similarities[is_top], rank[is_top]
        is_kth = rank == self.top_k - 1
        self.thresholds[rows[is_kth]] = similarities[is_kth]
        self._thresholds_differ |= bool(is_kth.any())
        self._counts[first : last + 1] = np.minimum(counts, self.top_k)
        return _Candidates(first, last, rows, targets, similarities), rank

    def result(self) -> Neighbours:
        """The neighbours of all rows."""
        ranks = self._compact()
        rows, targets = (
            np.concatenate([np.zeros(0, np.int64), *(getattr(p, c) for p in self._parts)]) for c in ("rows", "targets")
        )
        similarity = np.concatenate([np.zeros(0), *(p.similarities for p in self._parts)])
        return Neighbours(rows, targets, similarity, np.concatenate([np.zeros(0, np.int32), *ranks]))


@dataclass(frozen=True)
class _Sizes:
    """Rows of one product on either side, and candidates that are scored at a time, within the memory."""

    query_rows: int
    target_rows: int
    scored: int

    @classmethod
    def within(cls, memory_mib: int, target_rows: int) -> _Sizes:
        """`target_rows`: the most that the prefilter wants."""
        budget = memory_mib << 20
        query_rows = max(1, min(QUERY_ROWS, budget // (1 << 16)))
        # a product, its masks, the positions of the candidates: 64 bytes an entry
        return cls(
            query_rows, max(1, min(target_rows, budget // 64 // query_rows)), max(1, min(1 << 16, budget // 1024))
        )


def _candidates(
    block: PairBlock, prefilter: Prefilter, sizes: _Sizes, thresholds: tuple[np.ndarray, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """What the prefilter lets through of a block of pairs: (query rows and target rows of one product, then query and
    target rows of the candidates). `thresholds` of the two sides are read anew for each product.
    """
    query_thresholds, target_thresholds = thresholds
    starts = range(0, len(block.targets), sizes.target_rows)
    prepared_targets = [prefilter.prepare_targets(block.targets[s : s + sizes.target_rows]) for s in starts]
    for a in range(0, len(block.queries), sizes.query_rows):
        queries = block.queries[a : a + sizes.query_rows]
        prepared_queries = prefilter.prepare_queries(queries)
        for b, prepared in zip(starts, prepared_targets, strict=True):
            targets = block.targets[b : b + sizes.target_rows]
            if block.is_self and b + len(targets) <= a + 1:
                continue
            rows, columns = prefilter.candidates(
                prepared_queries, prepared, query_thresholds[queries], target_thresholds[targets]
            )
            for start in range(0, len(rows), sizes.scored):
                i, j = rows[start : start + sizes.scored], columns[start : start + sizes.scored]
                if block.is_self and b < a + len(queries):  # on the diagonal: each unordered pair once
                    is_first = b + j > a + i
                    i, j = i[is_first], j[is_first]
                yield queries, targets, queries[i], targets[j]


def blocked_join(
    sides: JoinSides,
    blocks: Sequence[PairBlock],
    thresholds: np.ndarray,
    spec: SearchSpec,
    coded: CodedRows | None = None,
) -> Neighbours:
    """The neighbours of the blocks' rows.

    Args:
        sides: what is compared.
        blocks: which pairs; together each pair at most once.
        thresholds: (m,) float64, least similarity of a query's neighbour; inf where it collects none. Overwritten.
        spec: window, k, prefilter, threads and memory.
        coded: the targets' codes, where they are known.
    """
    collector = _Collector(thresholds, sides.tie_rank, spec.top_k, spec.memory_mib)
    both = (thresholds, thresholds if sides.is_symmetric else np.full(len(sides.targets), np.inf))
    pairs = sum(block.pairs for block in blocks)
    prefilter = choose_prefilter(sides.queries, sides.targets, spec, pairs=pairs, coded=coded)
    sizes = _Sizes.within(spec.memory_mib, prefilter.target_rows)
    for block in blocks:
        if not block.pairs:
            continue
        for query_block, target_block, rows, columns in _candidates(block, prefilter, sizes, both):
            if sides.self_index is not None:
                is_other = sides.self_index[rows] != columns
                rows, columns = rows[is_other], columns[is_other]
            similarity = exact_similarity_at(sides.queries, sides.targets, rows, columns)
            inside = in_window(similarity, spec.window)
            if not inside.all():
                rows, columns, similarity = rows[inside], columns[inside], similarity[inside]
            collector.offer(query_block, rows, columns, similarity)
            if sides.is_symmetric:
                collector.offer(target_block, columns, rows, similarity)
    return collector.result()
