"""The blocked join on a torch device: product, screen, exact scoring and the k best of each row stay there, the result alone comes back.

A GPU multiplies a hundred times faster than a CPU scores what is left, so nothing of a pair travels before it is among the k best. What decides is the
same as on a CPU: the product of two float16 numbers is exact in float32, sums of those are exact in float64 in any order (tasks/knn/search.py). Used by
tasks/knn/search.py for `mine.backend: torch`; with no GPU it runs on the CPU, for tests. Several GPUs: a process each, with `--part i/n`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from tasks.knn.int8_screen import QUERY_ROWS, TorchScreen

GPU_QUERY_ROWS = 8192  # rows of one product: with 32,768 others 0.5 ms on a card of 800 TFLOP/s, several times what starting its kernels takes
GPU_COORDINATES, CPU_COORDINATES = 1 << 27, 1 << 18  # coordinates at a time when pairs are scored
GPU_ENTRIES, CPU_ENTRIES = 1 << 24, 1 << 17  # candidates that come in before the collector looks for what is beyond the k-th


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
        floors: (n,) float64 tensor, similarity that a row's next candidate must reach; inf for rows that collect nothing.
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
        query rows (p,) int64, target rows (p,) int64, similarity (p,) float64, rank (p,) int32 from 0; by query, then rank.
    """
    import torch

    screen = TorchScreen(queries, targets, device, is_half)
    is_gpu = screen.device.type != "cpu"

    def there(array: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).to(screen.device)

    collector = _Collector(there(floors.astype(np.float64)), there(place), limits.neighbours, GPU_ENTRIES if is_gpu else CPU_ENTRIES)
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
                    collector.floors[others_there] if both_ways else torch.full((len(others),), torch.inf, dtype=torch.float64, device=screen.device)
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
