"""Choose the prefilter for a join: 8-bit codes on which axes and of which width, or a float product.

The choice is made by estimated time, measured on a sample; a wrong estimate costs time, never a pair.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np

from tasks.knn.codes import Axes, CodedRows, encode, fit_axes, principal_axes
from tasks.knn.exact import Rows, to_array
from tasks.knn.int8_prefilter import Int8Prefilter, product_bits
from tasks.knn.prefilter import Float32Prefilter, Prefilter
from tasks.knn.spec import SearchSpec
from tasks.knn.torch_prefilter import TorchPrefilter

WIDTHS = (64, 128, 192, 256, 384, 512)  # coordinates that codes may keep; oneDNN pads to 64 anyhow
LARGE_PAIRS = 200_000_000
MAX_CANDIDATE_SHARE = 0.2  # of the pairs that pass the 8-bit prefilter; above it a float product is faster
SAMPLE_ROWS = 16_384  # rows that the axes are fitted to
TRIAL_QUERIES, TRIAL_TARGETS = 256, 2048  # rows that the width is chosen on
# estimated times, ns: a pair, a coordinate of a pair, a position that is looked up, a coordinate of an exact score
PAIR_NS, PAIR_COORDINATE_NS, POSITION_NS, CANDIDATE_COORDINATE_NS = 0.20, 0.0044, 25.0, 3.0


def load_torch_if_large(pairs: int, width: int) -> bool:
    """Whether a join is large enough for the 8-bit prefilter; then torch is imported.

    The import and the codes cost as much as some 10^8 pairs in float32.

    Args:
        pairs: of the join, a count.
        width: d of the vectors.
    """
    if pairs < LARGE_PAIRS or width < WIDTHS[0]:
        return False
    importlib.import_module("torch")
    return True


def _trial(codes_sample: np.ndarray, axes: Axes, queries: int, low: float) -> tuple[float, float]:
    """Shares of a sample's pairs that pass the 8-bit prefilter, and that are looked up because their product is not 0.

    Args:
        codes_sample: (m, d) float16; the first `queries` rows are compared with the others.
        axes: to code along.
        queries: a count.
        low: similarity that a pair must reach.
    """
    codes = encode(codes_sample, axes)
    margin = codes.margin(float(np.sqrt(max(0.0, 2 * float(codes.norm2.max()) - 2 * low))))
    values = codes.codes.astype(np.float32) * np.float32(codes.scale)
    a, b = slice(0, queries), slice(queries, None)
    bound = values[a] @ values[b].T + margin[a, None].astype(np.float32) + margin[None, b].astype(np.float32)
    # a product is 0 by the largest margin of its queries alone; every entry that is not 0 is looked up
    looked_up = bound + (margin[a].max() - margin[a, None]).astype(np.float32) >= low
    return float(np.mean(bound >= low)), float(np.mean(looked_up))


def best_axes(sample: np.ndarray, low: float, widths: Sequence[int] = WIDTHS, seed: int = 0) -> tuple[Axes, float]:
    """The axes whose prefilter is estimated to be fastest, and the share of pairs that pass it on part of the sample.

    Args:
        sample: (m, d) float16, rows drawn at random.
        low: similarity that a pair must reach.
        widths: numbers of coordinates to try.
        seed: of the trial's rows.
    """
    d = sample.shape[1]
    directions, mean = principal_axes(sample)
    order = np.random.default_rng(seed).permutation(len(sample))
    trial = order[: TRIAL_QUERIES + TRIAL_TARGETS]
    best: tuple[float, Axes, float] | None = None
    for width in sorted({min(w, d) for w in widths}):
        axes = fit_axes(directions, mean, sample, width, seed)
        share, cost = 0.0, PAIR_NS + PAIR_COORDINATE_NS * width
        if best is not None and cost >= best[0]:
            break
        if len(trial) > TRIAL_QUERIES:
            share, looked_up = _trial(sample[trial], axes, TRIAL_QUERIES, low)
            cost += POSITION_NS * looked_up
        cost += share * CANDIDATE_COORDINATE_NS * d
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
    """Whether the 8-bit prefilter pays: this machine multiplies right, and most pairs do not pass (`share` does)."""
    return product_bits(axes.matrix.shape[1]) > 0 and share <= MAX_CANDIDATE_SHARE


def choose_prefilter(
    queries: Rows, targets: Rows, spec: SearchSpec, *, pairs: int | None = None, coded: CodedRows | None = None
) -> Prefilter:
    """The prefilter for a join.

    Args:
        queries: (m, d) float16.
        targets: (n, d) float16; the same array for a self-join.
        spec: window, threads, and which prefilter is asked for.
        pairs: pairs of the join, a count; m x n when absent.
        coded: the targets' codes, where they are known.
    """
    m, n, d = len(queries), len(targets), queries.shape[1]
    pairs = m * n if pairs is None else pairs
    kind, low, threads = spec.prefilter, spec.window.low, spec.threads
    if kind.startswith("torch"):
        return TorchPrefilter(to_array(queries), to_array(targets), spec.device)
    if kind == "float32" or (kind == "auto" and not load_torch_if_large(pairs, d)) or not n or not m:
        return Float32Prefilter(queries, targets)
    if coded is not None and (bits := product_bits(coded.axes.matrix.shape[1])):
        return Int8Prefilter(queries, targets, coded.axes, low=low, bits=bits, threads=threads, codes=coded.codes)
    axes, share = corpus_axes(targets, low)
    bits = product_bits(axes.matrix.shape[1])
    # where most pairs pass, the product would be computed for nothing
    if bits == 0 or (kind == "auto" and not is_worthwhile(axes, share)):
        return Float32Prefilter(queries, targets)
    return Int8Prefilter(queries, targets, axes, low=low, bits=bits, threads=threads)
