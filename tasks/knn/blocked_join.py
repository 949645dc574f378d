"""The exact blocked join: every pair of blocks is looked at once, behind the 8-bit prefilter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tasks.knn.choose_screen import make_screen
from tasks.knn.codes import Coded
from tasks.knn.exact import Found, Rows, exact_of_rows, order_of
from tasks.knn.screen import QUERY_ROWS

# candidates that come in before the collector looks for what is beyond the k-th: a look reads every row's count
LOOKED_AFTER = 1 << 17
ENTRY_BYTES = 80  # what a candidate takes while the collector sorts it


@dataclass
class _Job:
    """Rows against rows; `is_self`: the same rows, each pair once."""

    queries: np.ndarray
    targets: np.ndarray
    is_self: bool = False

    @property
    def pairs(self) -> int:
        return len(self.queries) * len(self.targets) // (2 if self.is_self else 1)


class _Part(NamedTuple):
    """Candidates of the rows `first` to `last`: rows and targets (m,) int32, similarities (m,) float64."""

    first: int
    last: int
    rows: np.ndarray
    targets: np.ndarray
    similarities: np.ndarray


@dataclass
class _Collector:
    """The k best of each row so far.

    Attributes:
        floors: (n,) float64, similarity that a row's next candidate must reach: the window's low end, later the row's
            k-th
            best; inf for rows that collect nothing. Kept up to date in place.
        place: (n,) int64, order of the targets' ids.
        neighbours: k.
        memory_mib: of the candidates, with what sorting them takes.
    """

    floors: np.ndarray
    place: np.ndarray
    neighbours: int
    memory_mib: int
    _parts: list[_Part] = field(default_factory=list)
    _stored: int = 0
    _since: int = 0

    def __post_init__(self) -> None:
        self._counts = np.zeros(len(self.floors), np.int64)
        # some row wants more than the window's low end
        self._is_choosy = bool((self.floors != self.floors.min(initial=np.inf)).any())
        self._limit = (self.memory_mib << 20) // 2 // ENTRY_BYTES

    def offer(self, block: np.ndarray, rows: np.ndarray, targets: np.ndarray, similarities: np.ndarray) -> None:
        """Candidates inside the window, each (row, target) once over the whole join; `block`: the rows that they are
        of, rising.
        """
        if self._is_choosy:
            good = similarities >= self.floors[rows]
            if not good.all():
                rows, targets, similarities = rows[good], targets[good], similarities[good]
        if not len(rows):
            return
        self._parts.append(
            _Part(int(block[0]), int(block[-1]), rows.astype(np.int32), targets.astype(np.int32), similarities)
        )
        np.add.at(self._counts, rows, 1)
        self._stored += len(rows)
        self._since += len(rows)
        if self._since >= (LOOKED_AFTER if self._stored > self._limit else max(LOOKED_AFTER, self._stored // 4)):
            self._since = 0
            surplus = int(np.maximum(self._counts - self.neighbours, 0).sum())
            if 2 * surplus >= self._stored or (self._stored > self._limit and surplus):
                self._compact()

    def _compact(self) -> list[np.ndarray]:
        """Drop what is beyond the k-th; the rest in order. Returns each part's ranks.

        Rows come a block at a time, so that what was offered falls into ranges of rows that do not meet; each is put in
        order for itself, in cache.
        """
        ranges: list[list[_Part]] = []
        last = -1
        for part in sorted(self._parts, key=lambda p: p.first):
            if part.first > last:
                ranges.append([])
            ranges[-1].append(part)
            last = max(last, part.last)
        self._parts, ranks = [], []
        for some in ranges:
            part, rank = self._in_order(some)
            self._parts.append(part)
            ranks.append(rank)
        self._stored = sum(len(p.rows) for p in self._parts)
        return ranks

    def _in_order(self, parts: Sequence[_Part]) -> tuple[_Part, np.ndarray]:
        """Parts of one range of rows as one, by row, then rank, up to the k-th; and the ranks."""
        first, last = parts[0].first, max(p.last for p in parts)
        rows, targets, similarities = (
            np.concatenate(c) for c in zip(*((p.rows, p.targets, p.similarities) for p in parts), strict=True)
        )
        rows -= first
        order = order_of(rows, similarities, targets, self.place)
        counts = np.bincount(rows, minlength=last - first + 1)
        rows, targets, similarities = (
            np.repeat(np.arange(first, last + 1, dtype=np.int32), counts),
            targets[order],
            similarities[order],
        )
        rank = np.arange(len(rows), dtype=np.int32) - np.repeat((np.cumsum(counts) - counts).astype(np.int32), counts)
        if self.neighbours < int(counts.max()):
            kept = rank < self.neighbours
            rows, targets, similarities, rank = rows[kept], targets[kept], similarities[kept], rank[kept]
        full = rank == self.neighbours - 1
        self.floors[rows[full]] = similarities[full]
        self._is_choosy |= bool(full.any())
        self._counts[first : last + 1] = np.minimum(counts, self.neighbours)
        return _Part(first, last, rows, targets, similarities), rank

    def result(self) -> Found:
        """All rows' neighbours, by row, then rank."""
        ranks = self._compact()
        rows, targets = (
            np.concatenate([np.zeros(0, np.int64), *(getattr(p, c) for p in self._parts)]) for c in ("rows", "targets")
        )
        return (
            rows,
            targets,
            np.concatenate([np.zeros(0), *(p.similarities for p in self._parts)]),
            np.concatenate([np.zeros(0, np.int32), *ranks]),
        )


def _blocked(
    queries: Rows,
    targets: Rows,
    jobs: Sequence[_Job],
    collector: _Collector,
    target_floors: np.ndarray,
    own: np.ndarray | None,
    *,
    low: float,
    high: float,
    threads: int,
    memory_mib: int,
    screen: str,
    coded: Coded | None = None,
) -> None:
    """Offer every pair of the jobs that lies in the window to those of its ends that collect.

    Args:
        queries, targets: (m, d) and (n, d) float16.
        jobs: what to look at; together each pair at most once.
        collector: of the queries' neighbours, and of the targets' where they are the same rows.
        target_floors: (n,) the collector's own floors in a self-join, else all inf.
        own: (m,) the target row that a query itself is, -1 where none; None when the jobs never meet it.
    """
    both_ways = target_floors is collector.floors
    chosen = make_screen(
        queries, targets, low=low, threads=threads, kind=screen, pairs=sum(job.pairs for job in jobs), coded=coded
    )
    budget = memory_mib << 20
    query_rows = max(1, min(QUERY_ROWS, budget // (1 << 16)))
    # a product, its masks, the places of the hits
    target_rows = max(1, min(chosen.target_rows, budget // 64 // query_rows))
    step = max(1, min(1 << 16, budget // 1024))
    for job in jobs:
        if not job.pairs:
            continue
        starts = range(0, len(job.targets), target_rows)
        blocks = [chosen.targets(job.targets[s : s + target_rows]) for s in starts]
        for a in range(0, len(job.queries), query_rows):
            asked = job.queries[a : a + query_rows]
            prepared = chosen.queries(asked)
            for b, block in zip(starts, blocks, strict=True):
                others = job.targets[b : b + target_rows]
                if job.is_self and b + len(others) <= a + 1:
                    continue
                hit_rows, hit_columns = chosen.hits(prepared, block, collector.floors[asked], target_floors[others])
                for start in range(0, len(hit_rows), step):
                    i, j = hit_rows[start : start + step], hit_columns[start : start + step]
                    if job.is_self and b < a + len(asked):
                        once = b + j > a + i
                        i, j = i[once], j[once]
                    rows, cols = asked[i], others[j]
                    if own is not None:
                        other = own[rows] != cols
                        rows, cols = rows[other], cols[other]
                    similarity = exact_of_rows(queries, targets, rows, cols)
                    inside = (similarity >= low) & (similarity < high)
                    if not inside.all():
                        rows, cols, similarity = rows[inside], cols[inside], similarity[inside]
                    collector.offer(asked, rows, cols, similarity)
                    if both_ways:
                        collector.offer(others, cols, rows, similarity)
