"""The join on a torch device gives the whole matrix's rows, whatever its blocks, its collector's size and its products'
precision.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.knn import torch_join
from tasks.knn.join_input import JoinSides, PairBlock
from tasks.knn.neighbours import Neighbours
from tasks.knn.spec import SearchSpec
from tests.support.neighbours import Case, as_rows, cases, corpus, naive_join, spec_of


def join_all(rows: np.ndarray, spec: SearchSpec, is_half: bool | None = None) -> Neighbours:
    """The join of all rows with all others."""
    all_rows = np.arange(len(rows))
    sides = JoinSides(rows, rows, all_rows, is_symmetric=True)
    thresholds = np.full(len(rows), spec.window.low)
    return torch_join.torch_join(sides, [PairBlock(all_rows, all_rows, True)], thresholds, spec, is_half=is_half)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    cases(max_rows=200),
    st.sampled_from([3, 64, 1024]),
    st.sampled_from([1, 50, 1 << 17]),
    st.sampled_from([1 << 6, 1 << 18]),
    st.booleans(),
)
def test_the_join_equals_the_whole_matrix(case: Case, block: int, entries: int, coordinates: int, is_half: bool):
    rows, spec = case.rows(), case.spec(memory_mib=64, prefilter="torch:cpu")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch_join, "QUERY_ROWS", block)
        patched.setattr(torch_join, "CPU_ENTRIES", entries)
        patched.setattr(torch_join, "CPU_COORDINATES", coordinates)
        result = join_all(rows, spec, is_half)
    assert as_rows(result) == naive_join(rows, np.ones(case.n, bool), np.arange(case.n), spec)


def test_what_is_beyond_the_kth_is_dropped_during_the_join(monkeypatch: pytest.MonkeyPatch):
    rows, stored = corpus("clustered", 800, 16, 2), []
    compact = torch_join._Collector.compact

    def watched(self: Any) -> Any:
        stored.append(self._compacted + self._pending)
        return compact(self)

    monkeypatch.setattr(torch_join, "CPU_ENTRIES", 5000)
    monkeypatch.setattr(torch_join, "QUERY_ROWS", 32)
    monkeypatch.setattr(torch_join._Collector, "compact", watched)
    spec = spec_of(-0.5, 0.999, 4, memory_mib=64, prefilter="torch:cpu")
    assert as_rows(join_all(rows, spec)) == naive_join(rows, np.ones(800, bool), np.arange(800), spec)
    assert len(stored) > 2 and max(stored) < 800 * 800 // 4  # never all pairs
