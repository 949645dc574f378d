"""The blocked join on a torch device: product, prefilter, exact scores and the k best of each row stay on the device.

A GPU multiplies a hundred times faster than a CPU scores the candidates, so no pair travels to the CPU before it is
among the k best of a row. The decision is the same as on a CPU: the product of two float16 numbers is exact in float32,
and sums of those are exact in float64 in any order (tasks/knn/search.py). Used by tasks/knn/search.py for
`mine.backend: torch`; without a GPU it runs on the CPU, for tests. Several GPUs: one process each, with `--part i/n`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.knn.exact import to_array
from tasks.knn.join_input import JoinSides, PairBlock
from tasks.knn.neighbours import Neighbours
from tasks.knn.prefilter import QUERY_ROWS
from tasks.knn.spec import SearchSpec, in_window
from tasks.knn.torch_prefilter import TorchPrefilter

# rows of one product; with 32,768 others 0.5 ms on a card of 800 TFLOP/s, several times what starting its kernels takes
GPU_QUERY_ROWS = 8192
GPU_COORDINATES, CPU_COORDINATES = 1 << 27, 1 << 18  # coordinates at a time when pairs are scored
# candidates that are added before the collector drops what is beyond the k-th
GPU_ENTRIES, CPU_ENTRIES = 1 << 24, 1 << 17


@dataclass
class _Collector:
    """The k best candidates of each row so far, on the device.

    Attributes:
        thresholds: (n,) float64 tensor, similarity that a row's next candidate must reach; inf for rows that collect no
            neighbours.
        tie_rank: (n,) int64 tensor, rank of the targets' ids.
        top_k: most neighbours of a row, a count.
        max_pending: candidates that may be added between two compactions, a count.
    """

    thresholds: Any
    tie_rank: Any
    top_k: int
    max_pending: int
    _parts: list[tuple[Any, Any, Any]] = field(default_factory=list)
    _pending: int = 0
    _compacted: int = 0

    def offer(self, rows: Any, targets: Any, similarities: Any) -> None:
        """Add candidates inside the window, each (row, target) once over the whole join."""
        is_near = similarities >= self.thresholds[rows]
        self._parts.append((rows[is_near], targets[is_near], similarities[is_near]))
        self._pending += len(self._parts[-1][0])
        if self._pending > max(self.max_pending, self._compacted):  # sorted again when it has doubled
            self.compact()

    def compact(self) -> tuple[Any, Any, Any, Any]:
        """Drop what is beyond the k-th. Returns rows, targets, similarities, ranks, in order."""
        import torch

        rows, targets, similarities = (torch.cat(c) for c in zip(*self._parts, strict=True))
        order = torch.argsort(self.tie_rank[targets], stable=True)
        order = order[torch.argsort(similarities[order], descending=True, stable=True)]
        order = order[torch.argsort(rows[order], stable=True)]
        rows, targets, similarities = rows[order], targets[order], similarities[order]
        rank = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        is_top = rank < self.top_k
        rows, targets, similarities, rank = rows[is_top], targets[is_top], similarities[is_top], rank[is_top]
        is_kth = rank == self.top_k - 1
        self.thresholds[rows[is_kth]] = similarities[is_kth]
        self._parts, self._compacted, self._pending = [(rows, targets, similarities)], len(rows), 0
        return rows, targets, similarities, rank


@dataclass(frozen=True)
class _Block:
    """A product's rows and what was computed for them, on the device: vectors (a, d) and (b, d), row numbers (a,) and
    (b,), and the candidates' positions among them, (k,) each.
    """

    query_vectors: Any
    target_vectors: Any
    query_rows: Any
    target_rows: Any
    i: Any
    j: Any


class _Join:
    """One join: its sides, its prefilter and its collector."""

    def __init__(self, sides: JoinSides, thresholds: np.ndarray, spec: SearchSpec, is_half: bool | None) -> None:
        import torch

        queries = to_array(sides.queries)
        targets = queries if sides.targets is sides.queries else to_array(sides.targets)
        self.sides, self.spec = sides, spec
        self.prefilter = TorchPrefilter(queries, targets, spec.device, is_half)
        self.device = self.prefilter.device
        self.is_gpu = self.device.type != "cpu"
        self.width = max(1, queries.shape[1])
        self.collector = _Collector(
            self.to_device(thresholds.astype(np.float64)),
            self.to_device(sides.tie_rank),
            spec.top_k,
            GPU_ENTRIES if self.is_gpu else CPU_ENTRIES,
        )
        self.self_index = None if sides.self_index is None else self.to_device(sides.self_index)
        empty = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.collector.offer(empty, empty, empty.double())

    def to_device(self, array: np.ndarray) -> Any:
        """An array as a tensor on the device."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def candidates(self, block: PairBlock) -> Iterator[_Block]:
        """The candidates of a block of pairs, one product at a time."""
        import torch

        budget = self.spec.memory_mib << 20
        query_step = GPU_QUERY_ROWS if self.is_gpu else max(1, min(QUERY_ROWS, budget // (1 << 16)))
        target_step = max(1, min(self.prefilter.target_rows, budget // (4 if self.is_gpu else 64) // query_step))
        for a in range(0, len(block.queries) if len(block.targets) else 0, query_step):
            queries = block.queries[a : a + query_step]
            query_rows, query_vectors = self.to_device(queries), self.prefilter.prepare_queries(queries)
            for b in range(0, len(block.targets), target_step):
                targets = block.targets[b : b + target_step]
                if block.is_self and b + len(targets) <= a + 1:
                    continue
                target_rows, target_vectors = self.to_device(targets), self.prefilter.load_targets(targets)
                if self.sides.is_symmetric:
                    target_thresholds = self.collector.thresholds[target_rows]
                else:
                    target_thresholds = torch.full((len(targets),), torch.inf, dtype=torch.float64, device=self.device)
                query_thresholds = self.collector.thresholds[query_rows]
                i, j = self.prefilter.device_candidates(
                    query_vectors, target_vectors, query_thresholds, target_thresholds
                )
                if block.is_self:
                    is_first = b + j > a + i
                    i, j = i[is_first], j[is_first]
                yield _Block(query_vectors, target_vectors, query_rows, target_rows, i, j)

    def collect(self, block: _Block) -> None:
        """Score candidates exactly, and offer those inside the window to the rows that collect them."""
        import torch

        step = max(1, (GPU_COORDINATES if self.is_gpu else CPU_COORDINATES) // self.width)
        for start in range(0, len(block.i), step):
            i, j = block.i[start : start + step], block.j[start : start + step]
            # a product of two float16 numbers has 22 bits, float32 holds 24: exact
            products = block.query_vectors[i].float() * block.target_vectors[j].float()
            similarity = products.sum(1, dtype=torch.float64)
            rows, columns = block.query_rows[i], block.target_rows[j]
            is_neighbour = in_window(similarity, self.spec.window)
            if self.self_index is not None:
                is_neighbour &= self.self_index[rows] != columns
            rows, columns, similarity = rows[is_neighbour], columns[is_neighbour], similarity[is_neighbour]
            self.collector.offer(rows, columns, similarity)
            if self.sides.is_symmetric:
                self.collector.offer(columns, rows, similarity)

    def result(self) -> Neighbours:
        """The neighbours of all rows, in memory."""
        rows, columns, similarity, rank = (t.cpu().numpy() for t in self.collector.compact())
        return Neighbours(
            rows.astype(np.int64), columns.astype(np.int64), similarity.astype(np.float64), rank.astype(np.int32)
        )


def torch_join(
    sides: JoinSides,
    blocks: Sequence[PairBlock],
    thresholds: np.ndarray,
    spec: SearchSpec,
    *,
    is_half: bool | None = None,
) -> Neighbours:
    """The neighbours of the blocks' rows, computed on `spec.device`.

    Args:
        sides: what is compared.
        blocks: which pairs; together each pair at most once.
        thresholds: (m,) float64, least similarity of a query's neighbour; inf where it collects none.
        spec: window, k and memory.
        is_half: products in float16, as on a GPU; as the device does it when None.
    """
    join = _Join(sides, thresholds, spec, is_half)
    for block in blocks:
        for candidates in join.candidates(block):
            join.collect(candidates)
    return join.result()
