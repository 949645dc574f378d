"""What a neighbour search is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Backend = Literal["blocked", "torch", "faiss-flat", "faiss-ivf", "faiss-hnsw"]
APPROXIMATE_BACKENDS = ("faiss-ivf", "faiss-hnsw")


class Window(Protocol):
    """An interval of cosine similarity, low <= similarity < high; `tasks.config.Window` is one.

    Attributes:
        low: least similarity of a neighbour.
        high: similarities from here on are copies: they are no neighbours and take no rank.
    """

    @property
    def low(self) -> float:
        """Inclusive end."""
        ...

    @property
    def high(self) -> float:
        """Exclusive end."""
        ...


def in_window(similarity: Any, window: Window) -> Any:
    """Which similarities lie in the window; a bool array (or torch tensor) of the shape of `similarity`."""
    return (similarity >= window.low) & (similarity < window.high)


@dataclass(frozen=True)
class SearchSpec:
    """Window, number of neighbours, and how they are searched.

    All exact backends and all prefilters give the same rows; they differ in speed.

    Attributes:
        window: of cosine similarity.
        top_k: most neighbours of a query, a count.
        backend: blocked, torch or faiss-flat, which are exact; faiss-ivf or faiss-hnsw, which may miss neighbours.
        threads: CPU threads of FAISS and of the 8-bit product, a count; numpy's are the process's own
            (OPENBLAS_NUM_THREADS).
        memory_mib: what the join may take beside vectors, codes and result, MiB.
        prefilter: auto, int8 or float32 (tasks/knn/int8_prefilter.py), or torch[:<device>], which also names the device
            of backend torch (the first GPU, else the CPU, where none is named).
    """

    window: Window
    top_k: int
    backend: Backend = "blocked"
    threads: int = 1
    memory_mib: int = 1024
    prefilter: str = "auto"

    @property
    def device(self) -> str | None:
        """The torch device that `prefilter` names: 'torch:cuda:1' -> 'cuda:1'; None where it names none."""
        return self.prefilter.partition(":")[2] or None if self.prefilter.startswith("torch") else None
