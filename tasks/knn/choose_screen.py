"""Choose the prefilter for a join: which axes, which width, whether 8 bits are worth it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np

from tasks.knn.codes import Axes, Coded, axes_of, encode, principal_axes
from tasks.knn.exact import Rows, in_memory
from tasks.knn.int8_screen import Int8Screen, product_bits
from tasks.knn.screen import FloatScreen, Screen
from tasks.knn.torch_join import TorchScreen

WIDTHS = (64, 128, 192, 256, 384, 512)  # coordinates that codes may keep; oneDNN pads to 64 anyhow
LARGE_PAIRS = 200_000_000
LARGEST_SHARE = 0.2  # of the pairs that may survive the screen
SAMPLE_ROWS = 16_384  # rows that the axes are fitted to
TRIAL_QUERIES, TRIAL_TARGETS = 256, 2048  # rows that the width is chosen on
# What things cost, ns, to choose the width by; a wrong guess costs time, never a pair.
PAIR_NS, PAIR_COORDINATE_NS, PLACE_NS, SURVIVOR_COORDINATE_NS = 0.20, 0.0044, 25.0, 3.0


def load_for(pairs: int, d: int) -> bool:
    """Whether a join is large enough for the 8-bit screen; torch is loaded then. Its import and the codes cost what
    some 10^8 pairs cost in float32.
    """
    if pairs < LARGE_PAIRS or d < WIDTHS[0]:
        return False
    importlib.import_module("torch")
    return True


def best_axes(sample: np.ndarray, low: float, widths: Sequence[int] = WIDTHS, seed: int = 0) -> tuple[Axes, float]:
    """The axes whose screen is expected to be fastest, and the share of pairs that survive it, measured on part of the
    sample.

    Args:
        sample: (m, d) float16, rows drawn at random.
        low: similarity that a pair must reach.
        widths: numbers of coordinates to try.
        seed: of the trial's rows.
    """
    d = sample.shape[1]
    directions, mean = principal_axes(sample)
    order = np.random.default_rng(seed).permutation(len(sample))
    queries, targets = order[:TRIAL_QUERIES], order[TRIAL_QUERIES : TRIAL_QUERIES + TRIAL_TARGETS]
    best: tuple[float, Axes, float] | None = None
    for width in sorted({min(w, d) for w in widths}):
        axes = axes_of(directions, mean, sample, width, seed)
        share, cost = 0.0, PAIR_NS + PAIR_COORDINATE_NS * width
        if best is not None and cost >= best[0]:
            break
        if len(targets):
            codes = encode(sample[order[: TRIAL_QUERIES + TRIAL_TARGETS]], axes)
            margin = codes.margin(float(np.sqrt(max(0.0, 2 * float(codes.norm2.max()) - 2 * low))))
            values = codes.codes.astype(np.float32) * np.float32(codes.scale)
            a, b = slice(0, len(queries)), slice(len(queries), None)
            reachable = (
                values[a] @ values[b].T + margin[a, None].astype(np.float32) + margin[None, b].astype(np.float32)
            )
            share = float(np.mean(reachable >= low))
            # a product says 0 by the largest margin of its queries alone; what is not 0 is looked at one by one
            cost += PLACE_NS * float(np.mean(reachable + (margin[a].max() - margin[a, None]).astype(np.float32) >= low))
        cost += share * SURVIVOR_COORDINATE_NS * d
        if best is None or cost < best[0]:
            best = (cost, axes, share)
    assert best is not None
    return best[1], best[2]


def corpus_axes(vectors: Rows, low: float) -> tuple[Axes, float]:
    """`best_axes` on rows drawn from a corpus.

    Args:
        vectors: (n, d) float16.
        low: similarity that a pair must reach.
    """
    rng = np.random.default_rng(0)
    return best_axes(vectors[np.sort(rng.permutation(len(vectors))[:SAMPLE_ROWS])], low)


def is_worthwhile(axes: Axes, share: float) -> bool:
    """Whether the 8-bit screen pays: this machine multiplies right, and most pairs are held back."""
    return product_bits(axes.matrix.shape[1]) > 0 and share <= LARGEST_SHARE


def make_screen(
    queries: Rows,
    targets: Rows,
    *,
    low: float,
    threads: int = 1,
    kind: str = "auto",
    pairs: int | None = None,
    coded: Coded | None = None,
) -> Screen:
    """The screen for a join.

    Args:
        queries: (m, d) float16.
        targets: (n, d) float16; the same array for a self-join.
        low: similarity that a pair must reach.
        threads: CPU threads of the 8-bit product, a count; numpy's are the process's own (OPENBLAS_NUM_THREADS).
        kind: auto, int8, float32, or torch (or torch:<device>). All give the same pairs in the end.
        pairs: pairs that the join will look at; m x n when absent.
        coded: the targets' codes, where they are known.
    """
    m, n, d = len(queries), len(targets), queries.shape[1]
    pairs = m * n if pairs is None else pairs
    if kind.startswith("torch"):
        return TorchScreen(in_memory(queries), in_memory(targets), kind.partition(":")[2] or None)
    if kind == "float32" or (kind == "auto" and not load_for(pairs, d)) or not n or not m:
        return FloatScreen(queries, targets)
    if coded is not None and (bits := product_bits(coded.axes.matrix.shape[1])):
        return Int8Screen(queries, targets, coded.axes, low=low, bits=bits, threads=threads, codes=coded.codes)
    axes, share = corpus_axes(targets, low)
    bits = product_bits(axes.matrix.shape[1])
    # nearly everything survives: the product would be paid for nothing
    if bits == 0 or (kind == "auto" and not is_worthwhile(axes, share)):
        return FloatScreen(queries, targets)
    return Int8Screen(queries, targets, axes, low=low, bits=bits, threads=threads)
