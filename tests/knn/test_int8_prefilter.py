"""The bound of the 8-bit prefilter: no pair that is near enough is dropped, on vectors made to break it, on any
processor.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.knn import choose_prefilter as chooser
from tasks.knn import int8_prefilter
from tasks.knn.choose_prefilter import choose_prefilter
from tasks.knn.codes import encode, fit_axes, principal_axes
from tasks.knn.int8_prefilter import Int8Prefilter, product_bits
from tasks.knn.prefilter import Float32Prefilter, Prefilter
from tasks.knn.torch_prefilter import TorchPrefilter
from tests.support.neighbours import normalised, spec_of

KINDS = ("clustered", "equal", "orthogonal", "one axis", "long and short", "narrow", "signs", "few values")


def adversarial(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    """Rows of about unit length, (n, d) float16, each kind hard for a code in its own way."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d))
    if kind == "clustered":
        rows = rng.normal(size=(4, d))[rng.integers(0, 4, n)] + 0.3 * rows
    elif kind == "equal":
        rows[:] = rows[:1]
    elif kind == "orthogonal":
        rows = np.eye(d)[rng.permutation(n) % d] * rng.choice([-1, 1], (n, 1))
    elif kind == "one axis":  # one coordinate holds nearly all: the others fall below a level of the code
        rows = 1e-3 * rows + np.eye(d)[0]
    elif kind == "narrow":  # one far row sets the scale, the rest lie within a level of each other
        rows = 0.01 * rows + rng.normal(size=d)
        rows[0] = -rows[0]
    elif kind == "signs":
        rows = rng.choice([-1.0, 1.0], (n, d))
    elif kind == "few values":
        rows = rng.integers(-1, 2, (n, d)) + 0.5 * np.eye(d)[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if kind == "long and short":  # as far from unit length as a stored row may be
        rows *= rng.choice([0.9955, 1.0045], (n, 1))
    return rows.astype(np.float16)


def int8(rows: np.ndarray, low: float, bits: int, width: int) -> Int8Prefilter:
    axes = fit_axes(*principal_axes(rows), rows, width)
    return Int8Prefilter(rows, rows, axes, low=low, bits=bits)


def passes(prefilter: Prefilter, n: int, query_thresholds: np.ndarray, target_thresholds: np.ndarray) -> np.ndarray:
    """(n, n) bool: the pairs that the prefilter lets through."""
    rows = np.arange(n)
    sides = prefilter.prepare_queries(rows), prefilter.prepare_targets(rows)
    result = np.zeros((n, n), bool)
    result[prefilter.candidates(*sides, query_thresholds, target_thresholds)] = True
    return result


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.tuples(st.integers(2, 70), st.sampled_from([3, 16, 64, 100])),
    st.integers(1, 64),
    st.sampled_from([7, 8]),
    st.floats(-1, 1),
    st.sampled_from(["one", "rows", "columns", "both"]),
    st.integers(0, 9999),
)
def test_no_near_pair_is_dropped(
    kind: str, shape: tuple[int, int], width: int, bits: int, low: float, sides: str, seed: int
):
    n, d = shape
    rows, rng = adversarial(kind, n, d, seed), np.random.default_rng(seed)
    exact = rows.astype(np.float64) @ rows.astype(np.float64).T
    if seed % 2:  # the threshold falls exactly on a similarity that occurs
        low = float(np.clip(exact[rng.integers(n), rng.integers(n)], -1, 1))
    query_thresholds, target_thresholds = np.full(n, low), np.full(n, low)
    if sides in ("rows", "both"):
        query_thresholds = low + rng.random(n) * 0.3
    if sides == "columns":
        query_thresholds[:] = np.inf
    if sides in ("columns", "both"):
        target_thresholds = low + rng.random(n) * 0.3
    if sides == "rows":
        target_thresholds[:] = np.inf
    near = exact >= np.minimum(query_thresholds[:, None], target_thresholds[None, :])
    eight = int8(rows, low, min(bits, product_bits(min(width, d))) or 7, min(width, d))
    for prefilter in (
        eight,
        Float32Prefilter(rows, rows),
        TorchPrefilter(rows, rows, "cpu"),
        TorchPrefilter(rows, rows, "cpu", is_half=True),
    ):
        assert not (near & ~passes(prefilter, n, query_thresholds, target_thresholds)).any()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 64), st.sampled_from([63, 127]), st.integers(0, 9999))
def test_a_code_is_no_further_from_its_row_than_its_error_bound(kind: str, width: int, levels: int, seed: int):
    rows = adversarial(kind, 40, 64, seed)
    axes = fit_axes(*principal_axes(rows), rows, width)
    codes = encode(rows, axes, levels, block=7)
    exact = rows.astype(np.float64) @ axes.matrix.astype(np.float64) - axes.center
    off = np.linalg.norm(exact - codes.codes * codes.scale, axis=1)
    assert (off <= codes.error).all()
    assert np.abs(codes.codes.astype(int)).max() <= levels
    assert np.linalg.norm(axes.matrix.astype(np.float64), 2) <= 1
    assert (codes.norm2 >= (rows.astype(np.float64) ** 2).sum(axis=1)).all()


def test_the_prefilter_lets_few_other_pairs_through():
    """Of 400 x 400 pairs around 40 centers."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(40, 128)), 10, axis=0) + 0.35 * rng.normal(size=(400, 128))
    rows = normalised(rows)
    thresholds = np.full(400, 0.8)
    passing = passes(int8(rows, 0.8, 8, 64), 400, thresholds, thresholds)
    near = rows.astype(np.float64) @ rows.astype(np.float64).T >= 0.8
    assert near.sum() <= passing.sum() <= 1.5 * near.sum()


@pytest.mark.parametrize("sides", ["one", "rows", "both"])
def test_reading_eight_scores_together_gives_what_reading_each_gives(monkeypatch: pytest.MonkeyPatch, sides: str):
    rows, rng = adversarial("clustered", 400, 64, 3), np.random.default_rng(3)
    thresholds = np.full(400, 0.95) + (0.04 * rng.random(400) if sides != "one" else 0)
    prefilter, others = int8(rows, 0.95, 8, 64), np.full(400, np.inf) if sides == "rows" else thresholds[::-1]
    together = passes(prefilter, 400, thresholds, others)
    monkeypatch.setattr(int8_prefilter, "WORD", 7)  # 400 is no multiple of it
    assert 400 <= together.sum() < 40_000
    assert np.array_equal(together, passes(prefilter, 400, thresholds, others))


def test_where_the_8_bit_product_fails_its_check_the_float32_prefilter_is_chosen(monkeypatch: pytest.MonkeyPatch):
    rows, spec = adversarial("clustered", 50, 64, 0), spec_of(0.8, 1, 9, prefilter="int8")
    if product_bits(64):
        assert isinstance(choose_prefilter(rows, rows, spec), Int8Prefilter)
    monkeypatch.setattr(chooser, "product_bits", lambda width: 0)
    assert isinstance(choose_prefilter(rows, rows, spec), Float32Prefilter)


OTHER_PROCESSOR = """
import numpy as np
from tasks.knn.int8_prefilter import product_bits
from tasks.knn.search import join_in_window
from tests.support.neighbours import normalised, spec_of
rng = np.random.default_rng(5)
rows = rng.choice([-1.0, 1.0], (6, 128))[rng.integers(0, 6, 300)] + 0.4 * rng.normal(size=(300, 128))
rows, all_rows = normalised(rows), np.arange(300)
specs = [spec_of(0.7, 0.95, 300, prefilter=p) for p in ("int8", "float32")]
int8, float32 = (join_in_window(rows, np.ones(300, bool), all_rows, spec) for spec in specs)
assert len(int8.rank) > 1000 and all(np.array_equal(a, b) for a, b in zip(int8, float32, strict=True))
print(product_bits(64), product_bits(128))
"""


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_a_processor_without_vnni_gives_the_same_pairs(isa: str):
    """oneDNN can be told to use no newer instructions than these, whose 16-bit sums saturate."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESSOR],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {"7", "8", "0"}
