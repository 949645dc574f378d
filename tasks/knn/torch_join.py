"""The blocked join on a torch device: product, screen, exact scoring and the k best of each row stay there, the result
alone comes back.

A GPU multiplies a hundred times faster than a CPU scores what is left, so nothing of a pair travels before it is among
the k best. What decides is the
same as on a CPU: the product of two float16 numbers is exact in float32, sums of those are exact in float64 in any
order (tasks/knn/search.py). Used by tasks/knn/search.py for `mine.backend: torch`; with no GPU it runs on the CPU, for
tests. Several GPUs: a process each, with `--part i/n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from tasks.knn.screen import FLOAT_TARGET_ROWS, GPU_TARGET_ROWS, QUERY_ROWS

# rows of one product: with 32,768 others 0.5 ms on a card of 800 TFLOP/s, several times what starting its kernels takes
GPU_QUERY_ROWS = 8192
GPU_COORDINATES, CPU_COORDINATES = 1 << 27, 1 << 18  # coordinates at a time when pairs are scored
# candidates that come in before the collector looks for what is beyond the k-th
GPU_ENTRIES, CPU_ENTRIES = 1 << 24, 1 << 17


class Limits(NamedTuple):
    """Window low <= cosine < high, most neighbours of a row, MiB of one product."""

    low: float
    high: float
    neighbours: int
    memory_mib: int


class Job(Protocol):
    """Rows against rows; `is_self`: the same rows, each pair once."""

    @property
    def queries(self) -> np.ndarray: ...
    @property
    def targets(self) -> np.ndarray: ...
    @property
    def is_self(self) -> bool: ...


@dataclass
class _Collector:
    """The k best of each row so far, on the device.

    Attributes:
        floors: (n,) float64 tensor, similarity that a row's next candidate must reach; inf for rows that collect
            nothing.
        place: (n,) int64 tensor, order of the targets' ids.
        neighbours: k.
        entries: candidates that may come in between two looks.
    """

    floors: Any
    place: Any
    neighbours: int
    entries: int
    _parts: list[tuple[Any, Any, Any]] = field(default_factory=list)
    _since: int = 0
    _kept: int = 0

    def offer(self, rows: Any, targets: Any, similarities: Any) -> None:
        """Candidates inside the window, each (row, target) once over the whole join."""
        good = similarities >= self.floors[rows]
        self._parts.append((rows[good], targets[good], similarities[good]))
        self._since += len(self._parts[-1][0])
        if self._since > max(self.entries, self._kept):  # sorted again when it has doubled
            self.compact()

    def compact(self) -> tuple[Any, Any, Any, Any]:
        """Drop what is beyond the k-th. Returns rows, targets, similarities, ranks, in order."""
        import torch

        rows, targets, similarities = (torch.cat(c) for c in zip(*self._parts, strict=True))
        order = torch.argsort(self.place[targets], stable=True)
        order = order[torch.argsort(similarities[order], descending=True, stable=True)]
        order = order[torch.argsort(rows[order], stable=True)]
        rows, targets, similarities = rows[order], targets[order], similarities[order]
        rank = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        kept = rank < self.neighbours
        rows, targets, similarities, rank = rows[kept], targets[kept], similarities[kept], rank[kept]
        last = rank == self.neighbours - 1
        self.floors[rows[last]] = similarities[last]
        self._parts, self._kept, self._since = [(rows, targets, similarities)], len(rows), 0
        return rows, targets, similarities, rank


def join_on_device(
    queries: np.ndarray,
    targets: np.ndarray,
    jobs: Sequence[Job],
    floors: np.ndarray,
    place: np.ndarray,
    own: np.ndarray | None,
    limits: Limits,
    *,
    both_ways: bool,
    device: str | None = None,
    is_half: bool | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The neighbours of the jobs' rows, as tasks/knn/search.py gives them.

    Args:
        queries, targets: (m, d) and (n, d) float16; the same array for a self-join.
        jobs: what to look at; together each pair at most once.
        floors: (m,) float64, lowest similarity of a query's neighbour; inf where it collects nothing.
        place: (n,) int64, order of the targets' ids.
        own: (m,) the target row that a query itself is, -1 where none; None when the jobs never meet it.
        limits: window, k and memory.
        both_ways: whether a pair is offered to its target too.
        device: of torch; the first GPU, else the CPU, when None.
        is_half: products in float16, as on a GPU.
    Returns:
        query rows (p,) int64, target rows (p,) int64, similarity (p,) float64, rank (p,) int32 from 0; by query, then
        rank.
    """
    import torch

    screen = TorchScreen(queries, targets, device, is_half)
    is_gpu = screen.device.type != "cpu"

    def there(array: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).to(screen.device)

    collector = _Collector(
        there(floors.astype(np.float64)), there(place), limits.neighbours, GPU_ENTRIES if is_gpu else CPU_ENTRIES
    )
    nothing = torch.zeros(0, dtype=torch.int64, device=screen.device)
    collector.offer(nothing, nothing, nothing.double())
    own_rows = None if own is None else there(own)
    budget = limits.memory_mib << 20
    query_rows = GPU_QUERY_ROWS if is_gpu else max(1, min(QUERY_ROWS, budget // (1 << 16)))
    target_rows = max(1, min(screen.target_rows, budget // (4 if is_gpu else 64) // query_rows))
    step = max(1, (GPU_COORDINATES if is_gpu else CPU_COORDINATES) // max(1, queries.shape[1]))
    for job in jobs:
        for a in range(0, len(job.queries), query_rows):
            if not len(job.targets):
                break
            asked = job.queries[a : a + query_rows]
            asked_there, prepared = there(asked), screen.queries(asked)
            for b in range(0, len(job.targets), target_rows):
                others = job.targets[b : b + target_rows]
                if job.is_self and b + len(others) <= a + 1:
                    continue
                others_there, block = there(others), screen.loaded(others)
                target_floors = (
                    collector.floors[others_there]
                    if both_ways
                    else torch.full((len(others),), torch.inf, dtype=torch.float64, device=screen.device)
                )
                i, j = screen.near(prepared, block, collector.floors[asked_there], target_floors)
                if job.is_self:
                    once = b + j > a + i
                    i, j = i[once], j[once]
                for s in range(0, len(i), step):
                    x, y = i[s : s + step], j[s : s + step]
                    products = prepared[x].float() * block[y].float()  # 22 bits of float32's 24: exact
                    similarity = products.sum(1, dtype=torch.float64)
                    rows, columns = asked_there[x], others_there[y]
                    inside = (similarity >= limits.low) & (similarity < limits.high)
                    if own_rows is not None:
                        inside &= own_rows[rows] != columns
                    rows, columns, similarity = rows[inside], columns[inside], similarity[inside]
                    collector.offer(rows, columns, similarity)
                    if both_ways:
                        collector.offer(columns, rows, similarity)
    rows, columns, similarity, rank = (t.cpu().numpy() for t in collector.compact())
    return rows.astype(np.int64), columns.astype(np.int64), similarity.astype(np.float64), rank.astype(np.int32)


TILE = 64  # columns of a product that are looked at together on a torch device


class TorchScreen:
    """A product on a torch device, a GPU where there is one: float16 rows, sums in float32; on a CPU all of it in
    float32.

    On a GPU the result is rounded to float16, so a score errs by at most 2^-11 of itself; the sums by (d + 8) 2^-23
    with a factor of 4 for tensor cores, which cut instead of rounding. Reduced-precision sums (split-K in float16) and
    TF32 are turned off while it works. The rows lie on the device as a whole where half of its free memory holds them,
    else each block travels when it is its turn.
    """

    def __init__(
        self, queries: np.ndarray, targets: np.ndarray, device: str | None = None, is_half: bool | None = None
    ) -> None:
        """`queries` (m, d) and `targets` (n, d) float16; `device`: of torch, the first GPU or the CPU when None;
        `is_half`: as on a GPU.
        """
        import torch

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        is_gpu = self.device.type == "cuda"
        is_half = is_gpu if is_half is None else is_half
        self.dtype = torch.float16 if is_half else torch.float32
        d = queries.shape[1]
        self.slack = (d + 8) * 2.0**-23 * (4 if is_half else 1) + (1.02 * 2.0**-11 if is_half else 0.0) + 1e-7
        self.target_rows = GPU_TARGET_ROWS if is_gpu else FLOAT_TARGET_ROWS
        self.query_vectors, self.target_vectors = queries, targets
        self.resident: Any = None
        if is_gpu:
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_tf32 = False
            if 2 * targets.nbytes < torch.cuda.mem_get_info(self.device)[0]:
                self.resident = torch.from_numpy(np.ascontiguousarray(targets)).to(self.device)

    def _rows(self, vectors: np.ndarray, rows: np.ndarray) -> Any:
        import torch

        if self.resident is not None and vectors is self.target_vectors:
            return self.resident[torch.from_numpy(rows).to(self.device)]
        return torch.from_numpy(vectors[rows]).to(self.device).to(self.dtype)

    def queries(self, rows: np.ndarray) -> Any:
        return self._rows(self.query_vectors, rows)

    def targets(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def near(self, queries: Any, targets: Any, query_floors: Any, target_floors: Any) -> tuple[Any, Any]:
        """Places (i, j) of `hits` as tensors on the device.

        A product is larger than what is left of it, and reading it is what costs beside making it. So it is read once,
        for the largest score of each TILE columns; only tiles that may hold a hit are looked at again.

        Args:
            queries: (m, d) tensor, of `queries`.
            targets: (n, d) tensor, of `loaded`.
            query_floors, target_floors: (m,) and (n,) float64 tensors.
        """
        import torch

        m, n = len(queries), len(targets)
        by_query, by_target = ((floors - self.slack).float() for floors in (query_floors, target_floors))
        scores = queries @ targets.T  # (m, n)
        if over := -n % TILE:
            scores = torch.nn.functional.pad(scores, (0, over), value=-torch.inf)
            by_target = torch.nn.functional.pad(by_target, (0, over), value=torch.inf)
        tiles, by_target = scores.view(m, -1, TILE), by_target.view(-1, TILE)
        # compared in float32, however the scores are stored
        row, tile = (tiles.amax(2) >= torch.minimum(by_query[:, None], by_target.amin(1)[None, :])).nonzero().unbind(1)
        which, column = (tiles[row, tile] >= torch.minimum(by_query[row][:, None], by_target[tile])).nonzero().unbind(1)
        return row[which], tile[which] * TILE + column

    def loaded(self, rows: np.ndarray) -> Any:
        """Some target rows on the device, (n, d)."""
        return self._rows(self.target_vectors, rows)

    def hits(
        self, queries: Any, targets: np.ndarray, query_floors: np.ndarray, target_floors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        import torch

        floors = [
            torch.from_numpy(np.ascontiguousarray(f, np.float64)).to(self.device) for f in (query_floors, target_floors)
        ]
        i, j = self.near(queries, self.loaded(targets), *floors)
        return np.asarray(i.cpu().numpy(), np.int64), np.asarray(j.cpu().numpy(), np.int64)
