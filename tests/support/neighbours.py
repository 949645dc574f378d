"""Vectors and the naive form of the incremental join, which is its specification; for the tests of tasks/knn."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tasks.config import Window
from tasks.knn.spec import SearchSpec

CORPORA = ["clustered", "equal", "orthogonal", "copies", "ties"]


def spec_of(low: float, high: float, top_k: int, **settings: Any) -> SearchSpec:
    """A search in the window low <= s < high; above the highest possible similarity `high` is cut to 1.01."""
    return SearchSpec(Window(low=low, high=min(high, 1.01)), top_k, **settings)


def unit_circle(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane, (n, 2) float16."""
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)


def normalised(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length, (n, d) float16."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def corpus(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    """Unit rows, (n, d) float16, among which ties, copies and empty windows are common; `kind`: one of CORPORA."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(max(1, n // 8), d))[rng.integers(0, max(1, n // 8), n)] + 0.2 * rng.normal(size=(n, d))
    if kind == "equal":
        rows[:] = rows[:1]
    elif kind == "orthogonal":
        rows = np.eye(d)[np.arange(n) % d]
    elif kind == "copies":
        rows[n // 2 :] = rows[: n - n // 2]
    elif kind == "ties":
        rows = rng.integers(-1, 2, (n, d)) + 0.5
    return normalised(rows)


@dataclass(frozen=True)
class Case:
    """A corpus and a window, drawn by hypothesis."""

    kind: str
    n: int
    d: int
    top_k: int
    low: float
    width: float
    seed: int

    def rows(self) -> np.ndarray:
        """(n, d) float16."""
        return corpus(self.kind, self.n, self.d, self.seed)

    def spec(self, **settings: Any) -> SearchSpec:
        """The search of this case."""
        return spec_of(self.low, self.low + self.width, self.top_k, **settings)


def cases(max_rows: int) -> st.SearchStrategy[Case]:
    """Cases of at most `max_rows` rows, with narrow, wide and empty windows."""
    return st.builds(
        Case,
        kind=st.sampled_from(CORPORA),
        n=st.integers(0, max_rows),
        d=st.sampled_from([4, 64]),
        top_k=st.integers(1, 90),
        low=st.floats(-1, 0.95),
        width=st.sampled_from([0.05, 0.5, 2.1]),
        seed=st.integers(0, 9999),
    )


def naive_join(
    rows: np.ndarray, is_new: np.ndarray, query_rows: np.ndarray, spec: SearchSpec
) -> list[tuple[int, int, float, int]]:
    """(query row, target row, similarity, rank) from the whole matrix of similarities."""
    result = []
    scores = rows.astype(np.float64) @ rows.astype(np.float64).T
    for q in sorted(query_rows.tolist()):
        allowed = (scores[q] >= spec.window.low) & (scores[q] < spec.window.high) & (is_new[q] | is_new)
        allowed[q] = False
        hits = sorted(np.flatnonzero(allowed).tolist(), key=lambda t: (-scores[q, t], t))[: spec.top_k]
        result += [(q, t, float(scores[q, t]), rank) for rank, t in enumerate(hits)]
    return result


def as_rows(neighbours: Iterable[np.ndarray]) -> list[tuple[int, int, float, int]]:
    """A search's result as rows (query row, target row, similarity, rank)."""
    return list(zip(*(column.tolist() for column in neighbours), strict=True))
