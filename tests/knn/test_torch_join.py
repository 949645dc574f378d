"""The join that stays on a torch device gives the whole matrix's rows, whatever its blocks, its collector's size and
its products' precision.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.knn import torch_join as device_join
from tasks.knn.blocked_join import _Job
from tasks.knn.torch_join import Limits, join_on_device
from tests.knn.test_search import corpus, listed, whole_matrix


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["clustered", "equal", "orthogonal", "copies", "ties"]), st.integers(0, 200), st.sampled_from([4, 64]), st.integers(1, 90),
    st.floats(-1, 0.95), st.sampled_from([0.05, 0.5, 2.1]), st.sampled_from([3, 64, 1024]), st.sampled_from([1, 50, 1 << 17]),
    st.sampled_from([1 << 6, 1 << 18]), st.booleans(), st.integers(0, 9999),
)  # fmt: skip
def test_equals_the_whole_matrix(
    kind: str,
    n: int,
    d: int,
    k: int,
    low: float,
    width: float,
    block: int,
    entries: int,
    coordinates: int,
    is_half: bool,
    seed: int,
):
    rows = corpus(kind, n, d, seed)
    everyone = np.arange(n)
    limits = Limits(low, low + width, k, memory_mib=64)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(device_join, "QUERY_ROWS", block)
        patched.setattr(device_join, "CPU_ENTRIES", entries)
        patched.setattr(device_join, "CPU_COORDINATES", coordinates)
        jobs = [_Job(everyone, everyone, is_self=True)]
        found = join_on_device(
            rows, rows, jobs, np.full(n, low), everyone, None, limits, both_ways=True, device="cpu", is_half=is_half
        )
    assert listed(found) == whole_matrix(rows, np.ones(n, bool), everyone, low, low + width, k)


def test_what_is_beyond_the_kth_is_dropped_while_it_runs():
    rows = corpus("clustered", 800, 16, 2)
    everyone, held = np.arange(800), []
    with pytest.MonkeyPatch.context() as patched:
        compact = device_join._Collector.compact
        patched.setattr(device_join, "CPU_ENTRIES", 5000)
        patched.setattr(device_join, "QUERY_ROWS", 32)
        patched.setattr(
            device_join._Collector, "compact", lambda self: held.append(self._kept + self._since) or compact(self)
        )
        limits = Limits(-0.5, 0.999, 4, memory_mib=64)
        found = join_on_device(
            rows,
            rows,
            [_Job(everyone, everyone, is_self=True)],
            np.full(800, -0.5),
            everyone,
            None,
            limits,
            both_ways=True,
            device="cpu",
        )
    assert listed(found) == whole_matrix(rows, np.ones(800, bool), everyone, -0.5, 0.999, 4)
    assert len(held) > 2 and max(held) < 800 * 800 // 4  # never all pairs
