"""The prefilter on a torch device: a product in float16 on a GPU, in float32 on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.devices import pick_device
from tasks.knn.prefilter import FLOAT_TARGET_ROWS, GPU_TARGET_ROWS

TILE = 64  # columns of a product that are reduced together


class TorchPrefilter:
    """A product on a torch device, a GPU where there is one: float16 rows, sums in float32; all float32 on a CPU.

    On a GPU the result is rounded to float16, so a score errs by at most 2^-11 of itself; the sums by (d + 8) 2^-23
    with a factor of 4 for tensor cores, which truncate instead of rounding. Reduced-precision sums (split-K in float16)
    and TF32 are turned off for the process. The targets lie on the device as a whole where half of its free memory
    holds them, else each block travels when it is needed.
    """

    def __init__(
        self, queries: np.ndarray, targets: np.ndarray, device: str | None = None, is_half: bool | None = None
    ) -> None:
        """Place the rows.

        Args:
            queries: (m, d) float16.
            targets: (n, d) float16; the same array for a self-join.
            device: of torch; the first GPU, else the CPU, when None.
            is_half: products in float16; as the device does it when None.
        """
        import torch

        self.device = torch.device(pick_device(device or "auto"))
        is_gpu = self.device.type == "cuda"
        is_half = is_gpu if is_half is None else is_half
        self.dtype = torch.float16 if is_half else torch.float32
        d = queries.shape[1]
        self.error_bound = (d + 8) * 2.0**-23 * (4 if is_half else 1) + (1.02 * 2.0**-11 if is_half else 0.0) + 1e-7
        self.target_rows = GPU_TARGET_ROWS if is_gpu else FLOAT_TARGET_ROWS
        self.query_vectors, self.target_vectors = queries, targets
        self.resident: Any = None
        if is_gpu:
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_tf32 = False
            if 2 * targets.nbytes < torch.cuda.mem_get_info(self.device)[0]:
                self.resident = torch.from_numpy(np.ascontiguousarray(targets)).to(self.device)

    def _on_device(self, vectors: np.ndarray, rows: np.ndarray) -> Any:
        import torch

        if self.resident is not None and vectors is self.target_vectors:
            return self.resident[torch.from_numpy(rows).to(self.device)]
        return torch.from_numpy(vectors[rows]).to(self.device).to(self.dtype)

    def prepare_queries(self, rows: np.ndarray) -> Any:
        """Some query rows on the device, (m, d)."""
        return self._on_device(self.query_vectors, rows)

    def prepare_targets(self, rows: np.ndarray) -> np.ndarray:
        """The rows' numbers: a corpus may not fit the device, so a block is loaded when it is needed."""
        return rows

    def load_targets(self, rows: np.ndarray) -> Any:
        """Some target rows on the device, (n, d)."""
        return self._on_device(self.target_vectors, rows)

    def candidates(
        self, queries: Any, targets: np.ndarray, query_thresholds: np.ndarray, target_thresholds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Prefilter.candidates`."""
        import torch

        thresholds = [
            torch.from_numpy(np.ascontiguousarray(t, np.float64)).to(self.device)
            for t in (query_thresholds, target_thresholds)
        ]
        i, j = self.device_candidates(queries, self.load_targets(targets), *thresholds)
        return np.asarray(i.cpu().numpy(), np.int64), np.asarray(j.cpu().numpy(), np.int64)

    def device_candidates(
        self, queries: Any, targets: Any, query_thresholds: Any, target_thresholds: Any
    ) -> tuple[Any, Any]:
        """Rows and columns of the candidates, as tensors on the device.

        The product is far larger than what passes, and reading it is what costs beside computing it. So it is read
        once, for the largest score of each TILE columns; only tiles that may hold a candidate are read again.

        Args:
            queries: (m, d) tensor, of `prepare_queries`.
            targets: (n, d) tensor, of `load_targets`.
            query_thresholds, target_thresholds: (m,) and (n,) float64 tensors.
        """
        import torch

        m, n = len(queries), len(targets)
        by_query, by_target = ((t - self.error_bound).float() for t in (query_thresholds, target_thresholds))
        scores = queries @ targets.T  # (m, n)
        if padding := -n % TILE:
            scores = torch.nn.functional.pad(scores, (0, padding), value=-torch.inf)
            by_target = torch.nn.functional.pad(by_target, (0, padding), value=torch.inf)
        tiles, by_target = scores.view(m, -1, TILE), by_target.view(-1, TILE)
        # compared in float32, however the scores are stored
        row, tile = (tiles.amax(2) >= torch.minimum(by_query[:, None], by_target.amin(1)[None, :])).nonzero().unbind(1)
        which, column = (tiles[row, tile] >= torch.minimum(by_query[row][:, None], by_target[tile])).nonzero().unbind(1)
        return row[which], tile[which] * TILE + column
