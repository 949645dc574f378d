"""Exact nearest neighbours inside a window of cosine similarity, by rank.

Pure functions over float16 unit rows. What decides - window, rank, ties - is the inner product in float64, which for float16
rows is exact: a product of two float16 numbers of at most 1 is a multiple of 2^-48, so sums below 16 fit a float64's 53 bits
whatever the order of summation. So every backend, screen, block size and number of parts gives the same rows.

Exact backends propose. `blocked`, the default, looks at every pair of rows once and offers it to both ends, in blocks, behind a
screen with a proven bound (tasks/knn/int8_screen.py); a row that has its k neighbours raises its own floor, so that a wide window costs
little. `faiss-flat` asks FAISS's IndexFlatIP (float32) for more than k and asks again where that does not settle it.
`faiss-ivf` and `faiss-hnsw` are approximate: what they propose is scored exactly, what they miss is missed; mine measures how much and
keeps the recall with the run's figures. No backend holds n x n, and `memory_mib` bounds what a join needs beside its vectors, codes and result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from tasks.errors import DataError
from tasks.knn.int8_screen import QUERY_ROWS, Coded, Rows, in_memory, load_for, make_screen, widened
from tasks.knn.torch_join import Limits, join_on_device

Backend = Literal["blocked", "torch", "faiss-flat", "faiss-ivf", "faiss-hnsw"]
APPROXIMATE = ("faiss-ivf", "faiss-hnsw")
Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # query rows, target rows, similarity, rank

BLOCK_COORDINATES = 1 << 18  # coordinates at a time when pairs are scored: they stay in a processor's cache
FAISS_SCORES = 1 << 22  # (query, proposal) scores in memory at a time
FAISS_COORDINATES = 1 << 24
IVF_PROBED = 16  # one list in so many is looked at, at least 8
HNSW_LINKS, HNSW_BREADTH = 32, 128  # links of a row; rows kept while building and searching, at least twice the proposals
LOOKED_AFTER = 1 << 17  # candidates that come in before the collector looks for what is beyond the k-th: a look reads every row's count
ORDERED_AT_ONCE = 1 << 16  # candidates whose sorting numbers are made together
LEAST_LEVEL_BITS = 12  # of a similarity in a sort's key
ENTRY_BYTES = 80  # what a candidate takes while the collector sorts it


def exact_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of paired rows, (m,) float64, exact for float16 unit rows.

    Args:
        a: (m, d) float16.
        b: (m, d) float16.
    """
    rows = np.arange(len(a))
    return exact_of_rows(a, b, rows, rows)


def exact_of_rows(queries: Rows, targets: Rows, query_rows: np.ndarray, target_rows: np.ndarray) -> np.ndarray:
    """`exact_similarity` of queries[query_rows] and targets[target_rows], (m,) float64, gathered a little at a time.

    Args:
        queries, targets: (n, d) float16 each.
        query_rows, target_rows: (m,) int64.
    """
    out = np.empty(len(query_rows), np.float64)
    step = max(1, BLOCK_COORDINATES // max(1, queries.shape[1]))
    for start in range(0, len(out), step):
        some = slice(start, start + step)
        products = widened(queries.take(query_rows[some], axis=0), is_own=True)
        products *= widened(targets.take(target_rows[some], axis=0), is_own=True)  # 22 bits of float32's 24: exact
        out[some] = products.sum(axis=1, dtype=np.float64)
    return out


def _check(vectors: Rows, what: str) -> None:
    for start in range(0, len(vectors), 1024):
        block = widened(vectors[start : start + 1024])
        good = np.abs(np.sqrt(np.einsum("nd,nd->n", block, block)) - 1) < 5e-3
        if not good.all():
            row = int(np.argmin(good))
            raise DataError(f"knn: {what} row {start + row} has length {np.linalg.norm(block[row]):.4f}, expected 1; embed that shard again")


def neighbours_in_window(
    queries: np.ndarray,
    targets: np.ndarray,
    query_keys: Sequence[str],
    target_keys: Sequence[str],
    *,
    low: float,
    high: float,
    neighbours: int,
    threads: int = 1,
    backend: Backend = "blocked",
    memory_mib: int = 1024,
    screen: str = "auto",
) -> Found:
    """The nearest targets of each query among those inside the window.

    Args:
        queries: (m, d) float16, rows of unit length.
        targets: (n, d) float16, rows of unit length.
        query_keys: (m) ids; a target of the same id is the query itself and no neighbour.
        target_keys: (n) ids, each once; equal similarities are ordered by them.
        low: lowest cosine similarity, low <= s < high.
        high: similarities from here on are copies: passed over, they take no rank.
        neighbours: most neighbours of a query, a count.
        threads: CPU threads of the search, a count.
        backend: blocked, torch, faiss-flat, with the same rows from all; or faiss-ivf, faiss-hnsw, which may miss some.
        memory_mib: what the blocked join may take beside vectors, codes and result, MiB.
        screen: auto, int8 or float32 (tasks/knn/int8_screen.py); the same rows from all. `torch:<device>` says where backend torch works.
    Returns:
        query rows (p,) int64, target rows (p,) int64, similarity (p,) float64, rank (p,) int32 from 0; by query, then rank.
    Raises:
        DataError: a row is not of unit length, or widths differ.
    """
    m, n = len(queries), len(targets)
    if m == 0 or n == 0:
        return _empty()
    if queries.shape[1] != targets.shape[1]:
        raise DataError(f"knn: queries are {queries.shape[1]} wide, targets {targets.shape[1]}; vectors of two models in one index")
    load_for(m * n, queries.shape[1])
    _check(queries, "query")
    if targets is not queries:
        _check(targets, "target")
    order = np.argsort(np.asarray(target_keys, dtype=object), kind="stable")
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    itself = dict(zip(target_keys, range(n), strict=True))
    own = np.array([itself.get(k, -1) for k in query_keys], np.int64)
    if backend.startswith("faiss"):
        return _faiss(queries, targets, own, place, low=low, high=high, neighbours=neighbours, threads=threads, backend=backend)
    both_ways = queries is targets and np.array_equal(own, np.arange(n))
    floors = np.full(m, low, np.float64)
    rows = np.arange(m)
    job = _Job(rows, rows, is_self=True) if both_ways else _Job(rows, np.arange(n))
    if backend == "torch":
        limits = Limits(low, high, neighbours, memory_mib)
        return join_on_device(queries, targets, [job], floors, place, own, limits, both_ways=both_ways, device=device_of(screen))
    collector = _Collector(floors, place, neighbours, memory_mib)
    target_floors = floors if both_ways else np.full(n, np.inf)
    _blocked(queries, targets, [job], collector, target_floors, own, low=low, high=high, threads=threads, memory_mib=memory_mib, screen=screen)
    return collector.result()


def join_in_window(
    vectors: Rows,
    is_new: np.ndarray,
    asked: np.ndarray,
    place: np.ndarray | None = None,
    *,
    low: float,
    high: float,
    neighbours: int,
    threads: int = 1,
    backend: Backend = "blocked",
    memory_mib: int = 1024,
    screen: str = "auto",
    coded: Coded | None = None,
) -> Found:
    """The weekly join: for each new row asked for its nearest among all rows, for each old one its nearest among the new.

    The work is new x all: a pair of two old rows is never looked at, any other pair once for both its ends (the full build is
    the case where every row is new, and costs half a product). Where only some rows are asked for, pairs with the others
    serve one end.

    Args:
        vectors: (n, d) float16, rows of unit length.
        is_new: (n,) bool.
        asked: (m,) int64, rows whose neighbours are wanted, each once.
        place: (n,) int64, order of the rows' ids, which decides ties; the rows' own order when absent.
        low, high, neighbours, threads, backend, memory_mib, screen: as for `neighbours_in_window`.
        coded: the rows' codes, where they are stored; of another corpus they would cost pairs.
    Returns:
        query rows (p,) int64, target rows (p,) int64, similarity (p,) float64, rank (p,) int32 from 0; by query, then rank.
    Raises:
        DataError: a row is not of unit length.
    """
    n = len(vectors)
    asked = np.sort(asked)
    place = np.arange(n) if place is None else place
    if len(asked) == 0 or not is_new.any():
        return _empty()
    load_for(len(asked) * int(is_new.sum()), vectors.shape[1])
    if coded is None:
        _check(vectors, "stored")
    elif len(coded.codes.norm2) != n or bool((np.abs(np.sqrt(coded.codes.norm2) - 1) >= 5e-3).any()):
        raise DataError(f"knn: codes of {len(coded.codes.norm2)} rows for {n}, or of rows that are no unit vectors; remove the codes and mine again")
    asked_new, asked_old = asked[is_new[asked]], asked[~is_new[asked]]
    if backend.startswith("faiss"):
        sides = ((asked_new, np.arange(n)), (asked_old, np.flatnonzero(is_new)))
        return _in_order([_faiss_part(vectors, place, q, t, low=low, high=high, neighbours=neighbours, threads=threads, backend=backend) for q, t in sides])
    floors = np.full(n, np.inf)
    floors[asked] = low
    rest = np.ones(n, bool)
    rest[asked] = False
    jobs = [
        _Job(asked_new, asked_new, is_self=True),
        _Job(asked_old, asked_new),
        _Job(np.flatnonzero(rest), asked_new),
        _Job(asked_old, np.flatnonzero(rest & is_new)),
    ]
    if backend == "torch":
        limits = Limits(low, high, neighbours, memory_mib)
        return join_on_device(whole := in_memory(vectors), whole, jobs, floors, place, None, limits, both_ways=True, device=device_of(screen))
    collector = _Collector(floors, place, neighbours, memory_mib)
    _blocked(vectors, vectors, jobs, collector, floors, None, low=low, high=high, threads=threads, memory_mib=memory_mib, screen=screen, coded=coded)
    return collector.result()


def device_of(screen: str) -> str | None:
    """The torch device that a screen's name asks for: 'torch:cuda:1' -> 'cuda:1'; None where it names none."""
    return screen.partition(":")[2] or None if screen.startswith("torch") else None


def recall_of(found: Found, exact: Found) -> float:
    """Share of the exact (query, target) pairs that were found; 1 where there are none.

    Args:
        found, exact: rows for the same queries.
    """
    wanted = set(zip(exact[0].tolist(), exact[1].tolist(), strict=True))
    return len(wanted & set(zip(found[0].tolist(), found[1].tolist(), strict=True))) / len(wanted) if wanted else 1.0


def _empty() -> Found:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int32)


def _in_order(parts: Sequence[Found]) -> Found:
    """Results of different queries as one, by query."""
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return columns[0][order], columns[1][order], columns[2][order], columns[3][order]


# --- blocked ----------------------------------------------------------------------------------------------------------


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
        floors: (n,) float64, similarity that a row's next candidate must reach: the window's low end, later the row's k-th
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
        self._is_choosy = bool((self.floors != self.floors.min(initial=np.inf)).any())  # some row wants more than the window's low end
        self._limit = (self.memory_mib << 20) // 2 // ENTRY_BYTES

    def offer(self, block: np.ndarray, rows: np.ndarray, targets: np.ndarray, similarities: np.ndarray) -> None:
        """Candidates inside the window, each (row, target) once over the whole join; `block`: the rows that they are of, rising."""
        if self._is_choosy:
            good = similarities >= self.floors[rows]
            if not good.all():
                rows, targets, similarities = rows[good], targets[good], similarities[good]
        if not len(rows):
            return
        self._parts.append(_Part(int(block[0]), int(block[-1]), rows.astype(np.int32), targets.astype(np.int32), similarities))
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

        Rows come a block at a time, so that what was offered falls into ranges of rows that do not meet; each is put in order for itself, in cache.
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
        rows, targets, similarities = (np.concatenate(c) for c in zip(*((p.rows, p.targets, p.similarities) for p in parts), strict=True))
        rows -= first
        order = order_of(rows, similarities, targets, self.place)
        counts = np.bincount(rows, minlength=last - first + 1)
        rows, targets, similarities = np.repeat(np.arange(first, last + 1, dtype=np.int32), counts), targets[order], similarities[order]
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
        rows, targets = (np.concatenate([np.zeros(0, np.int64), *(getattr(p, c) for p in self._parts)]) for c in ("rows", "targets"))
        return rows, targets, np.concatenate([np.zeros(0), *(p.similarities for p in self._parts)]), np.concatenate([np.zeros(0, np.int32), *ranks])


def order_of(rows: np.ndarray, similarities: np.ndarray, targets: np.ndarray, place: np.ndarray | None = None) -> np.ndarray:
    """The order of candidates by row, falling similarity, place of the target.

    One sort of 64-bit numbers: the row, then the similarity cut to the bits that are left - which keeps its order -, then which candidate it is.
    What is equal but for the last is looked at closely. Eight million take 0.6 s so, 4.6 by three keys.

    Args:
        rows: (p,) whole numbers from 0.
        similarities: (p,) float64.
        targets: (p,) whole numbers, places in `place`.
        place: int64, order of the targets' ids; the targets' own when absent.
    Returns:
        (p,) int64.
    """
    count = len(rows)
    own_bits = max(count - 1, 0).bit_length()
    bits = min(63 - int(rows.max(initial=0)).bit_length() - own_bits, 40)
    if bits < LEAST_LEVEL_BITS or not count:
        return np.lexsort((targets if place is None else place[targets], -similarities, rows))
    most = similarities.max()
    scale = (2.0**bits - 1) / ((most - similarities.min()) or 1.0)
    keys = np.empty(count, np.int64)
    for start in range(0, count, ORDERED_AT_ONCE):  # a little at a time: what lies between stays in a processor's cache
        some = slice(start, start + ORDERED_AT_ONCE)
        part = rows[some].astype(np.int64)
        part <<= bits
        part |= ((most - similarities[some]) * scale).astype(np.int64)  # 0 the nearest
        part <<= own_bits
        part |= np.arange(start, start + len(part))
        keys[some] = part
    keys.sort()
    order = keys & (1 << own_bits) - 1
    keys >>= own_bits
    same = keys[1:] == keys[:-1]
    if same.any():
        close = np.zeros(count, bool)
        close[1:] |= same
        close[:-1] |= same
        at = np.flatnonzero(close)
        which = order[at]
        tied = targets[which] if place is None else place[targets[which]]
        order[at] = which[np.lexsort((tied, -similarities[which], keys[at]))]
    return order


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
    chosen = make_screen(queries, targets, low=low, threads=threads, kind=screen, pairs=sum(job.pairs for job in jobs), coded=coded)
    budget = memory_mib << 20
    query_rows = max(1, min(QUERY_ROWS, budget // (1 << 16)))
    target_rows = max(1, min(chosen.target_rows, budget // 64 // query_rows))  # a product, its masks, the places of the hits
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


# --- FAISS ------------------------------------------------------------------------------------------------------------


def _faiss_part(
    vectors: Rows,
    place: np.ndarray,
    query_rows: np.ndarray,
    target_rows: np.ndarray,
    *,
    low: float,
    high: float,
    neighbours: int,
    threads: int,
    backend: Backend,
) -> Found:
    """`_faiss` on some rows of one matrix."""
    own = np.searchsorted(target_rows, query_rows)
    own[(own == len(target_rows)) | (target_rows[np.minimum(own, len(target_rows) - 1)] != query_rows)] = -1
    found = _faiss(
        vectors[query_rows], vectors[target_rows], own, place[target_rows], low=low, high=high, neighbours=neighbours, threads=threads, backend=backend
    )
    return query_rows[found[0]], target_rows[found[1]], found[2], found[3]


def _faiss_index(targets: np.ndarray, backend: Backend, proposals: int) -> Any:
    """The index of a backend over (n, d) float16 rows. One thread at a time builds it the same way every time."""
    import faiss

    n, d = targets.shape
    rows = np.ascontiguousarray(targets, dtype=np.float32)
    lists = min(int(4 * np.sqrt(n)), n // 39)  # k-means wants 39 rows a list
    if backend == "faiss-ivf" and lists > 1:
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
        index.nprobe = min(lists, max(8, lists // IVF_PROBED))
    elif backend == "faiss-hnsw":
        index = faiss.IndexHNSWFlat(d, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = HNSW_BREADTH
        index.hnsw.efSearch = max(HNSW_BREADTH, 2 * proposals)
    else:
        index = faiss.IndexFlatIP(d)
    index.add(rows)
    return index


def _faiss(
    queries: np.ndarray,
    targets: np.ndarray,
    own: np.ndarray,
    place: np.ndarray,
    *,
    low: float,
    high: float,
    neighbours: int,
    threads: int,
    backend: Backend = "faiss-flat",
) -> Found:
    """`neighbours_in_window` by FAISS: own (m,) the target row that a query is or -1, place (n,) the order of the targets' ids.

    An approximate index is asked once: it has no bound on what it did not propose.
    """
    import faiss

    m, n, d = len(queries), len(targets), queries.shape[1]
    if m == 0 or n == 0:
        return _empty()
    slack = (d + 8) * 2.0**-23  # bound of a float32 inner product's error
    faiss.omp_set_num_threads(threads)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    todo, proposals = np.arange(m), min(n, 2 * neighbours + 8)
    is_exact = backend not in APPROXIMATE
    index = _faiss_index(targets, backend, proposals)
    while len(todo):
        again = []
        step = max(1, min(FAISS_SCORES // proposals, FAISS_COORDINATES // (proposals * d)))
        for start in range(0, len(todo), step):
            rows = todo[start : start + step]
            scores, hits = index.search(np.ascontiguousarray(queries[rows], dtype=np.float32), proposals)  # (b, proposals)
            exact = exact_of_rows(queries, targets, np.repeat(rows, proposals), np.maximum(hits, 0).ravel()).reshape(hits.shape)
            for row, hit, similarity, last in zip(rows, hits, exact, scores[:, -1], strict=True):
                inside = (similarity >= low) & (similarity < high) & (hit != own[row]) & (hit >= 0)  # -1: nothing more was found
                hit, similarity = hit[inside], similarity[inside]
                by_rank = np.lexsort((place[hit], -similarity))[:neighbours]
                hit, similarity = hit[by_rank], similarity[by_rank]
                unseen = float(last) + slack  # nothing that was not proposed is nearer than this
                if not is_exact or proposals == n or unseen < low or (len(hit) == neighbours and similarity[-1] > unseen):
                    found[int(row)] = (hit, similarity)
                else:
                    again.append(row)
        todo, proposals = np.array(again, np.int64), min(n, proposals * 4)
    counts = [len(found[row][0]) for row in range(m)]
    return (
        np.repeat(np.arange(m), counts),
        np.concatenate([found[row][0] for row in range(m)]).astype(np.int64),
        np.concatenate([found[row][1] for row in range(m)]),
        np.concatenate([np.arange(c, dtype=np.int32) for c in counts]),
    )
