"""The bound of the 8-bit screen: nothing that is near enough is held back, on vectors made to break it, on any
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

from tasks.knn import int8_screen as screen
from tasks.knn.choose_screen import make_screen
from tasks.knn.codes import axes_of, encode, principal_axes
from tasks.knn.int8_screen import Int8Screen, product_bits
from tasks.knn.screen import FloatScreen, Screen
from tasks.knn.torch_join import TorchScreen

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


def int8(rows: np.ndarray, low: float, bits: int, width: int) -> Int8Screen:
    axes = axes_of(*principal_axes(rows), rows, width)
    return Int8Screen(rows, rows, axes, low=low, bits=bits)


def passed(of: Screen, n: int, query_floors: np.ndarray, target_floors: np.ndarray) -> np.ndarray:
    rows = np.arange(n)
    out = np.zeros((n, n), bool)
    out[of.hits(of.queries(rows), of.targets(rows), query_floors, target_floors)] = True
    return out


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(2, 70), st.sampled_from([3, 16, 64, 100]), st.integers(1, 64), st.sampled_from([7, 8]),
    st.floats(-1, 1), st.sampled_from(["one", "rows", "columns", "both"]), st.integers(0, 9999),
)  # fmt: skip
def test_no_near_pair_is_held_back(kind: str, n: int, d: int, width: int, bits: int, low: float, sides: str, seed: int):
    rows, rng = adversarial(kind, n, d, seed), np.random.default_rng(seed)
    exact = rows.astype(np.float64) @ rows.astype(np.float64).T
    if seed % 2:  # the threshold falls exactly on a similarity that occurs
        low = float(np.clip(exact[rng.integers(n), rng.integers(n)], -1, 1))
    query_floors, target_floors = np.full(n, low), np.full(n, low)
    if sides in ("rows", "both"):
        query_floors = low + rng.random(n) * 0.3
    if sides == "columns":
        query_floors[:] = np.inf
    if sides in ("columns", "both"):
        target_floors = low + rng.random(n) * 0.3
    if sides == "rows":
        target_floors[:] = np.inf
    near = exact >= np.minimum(query_floors[:, None], target_floors[None, :])
    eight = int8(rows, low, min(bits, product_bits(min(width, d))) or 7, min(width, d))
    for of in (
        eight,
        FloatScreen(rows, rows),
        TorchScreen(rows, rows, "cpu"),
        TorchScreen(rows, rows, "cpu", is_half=True),
    ):
        assert not (near & ~passed(of, n, query_floors, target_floors)).any()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 64), st.sampled_from([63, 127]), st.integers(0, 9999))
def test_a_code_is_no_further_from_its_row_than_it_says(kind: str, width: int, levels: int, seed: int):
    rows = adversarial(kind, 40, 64, seed)
    axes = axes_of(*principal_axes(rows), rows, width)
    codes = encode(rows, axes, levels, block=7)
    exact = rows.astype(np.float64) @ axes.matrix.astype(np.float64) - axes.middle
    off = np.linalg.norm(exact - codes.codes * codes.scale, axis=1)
    assert (off <= codes.error).all()
    assert np.abs(codes.codes.astype(int)).max() <= levels
    assert np.linalg.norm(axes.matrix.astype(np.float64), 2) <= 1
    assert (codes.norm2 >= (rows.astype(np.float64) ** 2).sum(axis=1)).all()


def test_the_screen_is_worth_it():
    """Of 400 x 400 pairs around 40 middles, the code keeps those that count and few others."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(40, 128)), 10, axis=0) + 0.35 * rng.normal(size=(400, 128))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    floors = np.full(400, 0.8)
    kept = passed(int8(rows, 0.8, 8, 64), 400, floors, floors)
    near = rows.astype(np.float64) @ rows.astype(np.float64).T >= 0.8
    assert near.sum() <= kept.sum() <= 1.5 * near.sum()


@pytest.mark.parametrize("sides", ["one", "rows", "both"])
def test_looking_at_eight_results_together_finds_what_looking_at_each_does(monkeypatch: pytest.MonkeyPatch, sides: str):
    rows, rng = adversarial("clustered", 400, 64, 3), np.random.default_rng(3)
    floors = np.full(400, 0.95) + (0.04 * rng.random(400) if sides != "one" else 0)
    of, others = int8(rows, 0.95, 8, 64), np.full(400, np.inf) if sides == "rows" else floors[::-1]
    together = passed(of, 400, floors, others)
    monkeypatch.setattr(screen, "WORD", 7)  # 400 is no multiple of it
    assert 400 <= together.sum() < 40_000 and np.array_equal(together, passed(of, 400, floors, others))


def test_where_the_product_fails_its_check_a_float_product_serves(monkeypatch: pytest.MonkeyPatch):
    rows = adversarial("clustered", 50, 64, 0)
    assert isinstance(make_screen(rows, rows, low=0.8, kind="int8"), Int8Screen)
    monkeypatch.setattr(screen, "product_bits", lambda width: 0)
    assert isinstance(make_screen(rows, rows, low=0.8, kind="int8"), FloatScreen)


OTHER_PROCESSOR = """
import numpy as np
from tasks.knn import join_in_window
from tasks.screen import product_bits
rng = np.random.default_rng(5)
rows = rng.choice([-1.0, 1.0], (6, 128))[rng.integers(0, 6, 300)] + 0.4 * rng.normal(size=(300, 128))
rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
found = [join_in_window(rows, np.ones(300, bool), np.arange(300), low=0.7, high=0.95, neighbours=300, screen=s) for s in ("int8", "float32")]
assert len(found[0][0]) > 1000 and all(np.array_equal(a, b) for a, b in zip(*found))
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
