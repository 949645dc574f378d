"""The 8-bit prefilter: a product of small integers whose error is bounded by a proof.

One of three prefilters behind one interface (tasks/knn/prefilter.py): `Int8Prefilter` (8-bit codes of the rows'
principal coordinates, multiplied by oneDNN through torch), `Float32Prefilter` (small joins, and processors where the
8-bit product fails its check) and `TorchPrefilter` (a GPU's float16 product). Pure functions. A prefilter may let a
pair pass that is too far; it never drops one that is near enough.

**The bound.** Stored rows x, y; P a (d, w) matrix of spectral norm at most 1; a = P'x - m and b = P'y - m, so a - b =
P'(x - y) whatever m is. Codes p, q with known errors |a - p| <= hx and |b - q| <= hy. Let <x, y> >= f >= low. Then

    |p - q| <= |a - b| + hx + hy <= |x - y| + hx + hy          (triangle; P shortens)
    |x - y|^2 = |x|^2 + |y|^2 - 2<x, y> <= |x|^2 + |y|^2 - 2f
    |p|^2 + |q|^2 - 2<p, q> = |p - q|^2 <= |x|^2 + |y|^2 - 2f + 2D(hx + hy) + 2hx^2 + 2hy^2

with D the largest |x - y| that a similarity of `low` allows, D^2 = 2 max|x|^2 - 2 low. So

    f <= <p, q> + A(x) + A(y),    A(x) = (|x|^2 - |p|^2) / 2 + D hx + hx^2:

a pair whose right side stays below f cannot have that similarity. A belongs to one row, so the prefilter is one integer
product, a bias per column and a threshold per row. Where the rows lie close together (a narrow encoder), subtracting
the center m costs nothing and makes the codes finer; dropping coordinates costs only the distance that they hold.
Filtering by a quantised product with known residual norms is common in vector search; distances that a projection
shortens are the principle of the VA-file (Weber, Schek, Blott, VLDB 1998) and of GEMINI (Faloutsos and others, SIGMOD
1994).

*What rounding adds.* P is scaled below norm 1 by more than its rounding to float32. A float32 product over d terms errs
by at most d 2^-24 |x||p_k| a coordinate (to first order, any order of summation), so by sqrt(w) d 2^-24 |x| in all:
`encode` adds it to h, with 16 spare terms for the subtraction, the division and the norm. Codes are integers; sums of
their products are exact in int32. oneDNN converts them to float32, scales, adds the bias, rounds to nearest and
saturates: an error of half a step, and `_STEP_SLACK` covers the float32 operations. Saturation is monotone, so it
cannot hide a pair: a threshold is at most 255.

*Processors without VNNI* multiply u8 by s8 through 16-bit sums that saturate; a query's codes then have 7 bits (127 *
127 * 2 < 2^15). `product_bits` finds out by multiplying the worst rows there are, not by the processor's name.

Measured (AMD EPYC with VNNI, one core): 360 to 400 G operations a second for u8 x s8 to u8 at 128 coordinates, 0.72 ns
a pair, and 0.16 ns to scan the result. torch.ops.onednn is what torch.compile calls for quantised models;
torch.ops.quantized.linear gives the same bytes but its tensors are deprecated, and the signed form (s8 x s8) has no
fast kernel here (a thousandth of the speed).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from tasks.knn.codes import MAX_LEVEL, Axes, Codes, encode
from tasks.knn.exact import Rows
from tasks.knn.prefilter import QUERY_ROWS, TARGET_ROWS, deciding_sides, flat_positions, rows_and_columns

WORD = 8  # bytes of a product that are compared with 0 together
_STEP_SLACK = 0.55  # output steps: half for rounding to nearest, the rest for float32


def pack(codes: np.ndarray, query_rows: int = QUERY_ROWS) -> Any:
    """Target codes (n, w) int8 in oneDNN's own layout."""
    import torch

    return torch.ops.onednn.qlinear_prepack(torch.from_numpy(np.ascontiguousarray(codes)), [query_rows, codes.shape[1]])


def int8_product(
    queries: np.ndarray, zero: int, packed: Any, scale: float, bias: np.ndarray, step: float
) -> np.ndarray:
    """(queries - zero) @ targets' * scale + bias in steps of `step`, rounded to nearest and clipped to 0..255.

    Args:
        queries: (m, w) uint8.
        zero: the value that encodes 0 in `queries`.
        packed: n rows, of `pack`.
        scale: product of the two sides' scales.
        bias: (n,) float32.
        step: value of one output level.
    Returns:
        (m, n) uint8.
    """
    import torch

    one, none = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    out = torch.ops.onednn.qlinear_pointwise(
        torch.from_numpy(queries),
        scale,
        zero,
        packed,
        one,
        none,
        torch.from_numpy(bias),
        step,
        0,
        torch.uint8,
        "none",
        [],
        "",
    )
    return out.numpy()


@cache
def product_bits(width: int) -> int:
    """The bits of a query's codes with which this machine's product is right: 8, 7, or 0 where it never is."""
    rng = np.random.default_rng(width)
    try:
        for bits in (8, 7):
            highest = 2**bits - 1
            queries = np.where(rng.random((64, width)) < 0.5, 0, highest).astype(np.uint8)
            queries[0], queries[1] = highest, 0
            targets = np.where(rng.random((96, width)) < 0.5, -MAX_LEVEL, MAX_LEVEL).astype(np.int8)
            targets[0], targets[1] = MAX_LEVEL, -MAX_LEVEL
            zero = (highest + 1) // 2
            expected = (queries.astype(np.float64) - zero) @ targets.T.astype(np.float64)
            step = float(np.float32(np.abs(expected).max() / 120))
            bias = np.full(96, 127 * step, np.float32)
            computed = int8_product(queries, zero, pack(targets, 64), 1.0, bias, step)
            if np.abs(computed - np.clip((expected + bias) / step, 0, 255)).max() <= _STEP_SLACK:
                return bits
    except (AttributeError, RuntimeError):  # this torch has no such operator, or no kernel for it here
        return 0
    return 0


class Int8Prefilter:
    """The prefilter that the module's text describes."""

    def __init__(
        self,
        queries: Rows,
        targets: Rows,
        axes: Axes,
        *,
        low: float,
        bits: int,
        threads: int = 1,
        codes: Codes | None = None,
    ) -> None:
        """Code both sides.

        Args:
            queries: (m, d) float16.
            targets: (n, d) float16; the same array for a self-join.
            axes: to code along.
            low: similarity that a pair must reach.
            bits: of the queries' codes, 8 or 7 (`product_bits`).
            threads: CPU threads of the product, a count.
            codes: of the targets, where they are known.
        """
        import torch

        torch.set_num_threads(threads)
        self.bits, self.target_rows = bits, TARGET_ROWS
        self.target_codes = encode(targets, axes) if codes is None else codes
        levels = MAX_LEVEL if bits == 8 else 63
        self.query_codes = self.target_codes if queries is targets and bits == 8 else encode(queries, axes, levels)
        longest = max(
            (float(c.norm2.max()) for c in (self.query_codes, self.target_codes) if len(c.norm2)), default=1.0
        )
        distance = float(np.sqrt(max(0.0, 2 * longest - 2 * low)))
        self.query_margin, self.target_margin = self.query_codes.margin(distance), self.target_codes.margin(distance)
        self.scale = self.query_codes.scale * self.target_codes.scale
        self.zero = 2 ** (bits - 1)

    def prepare_queries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes (m, w) uint8 and margins (m,) float64 of some query rows."""
        # adding in uint8 wraps round, which is the intended shift from int8
        return self.query_codes.codes[rows].view(np.uint8) + np.uint8(self.zero), self.query_margin[rows]

    def prepare_targets(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """Packed codes and margins (n,) float64 of some target rows."""
        return pack(self.target_codes.codes[rows]), self.target_margin[rows]

    def candidates(
        self,
        queries: tuple[np.ndarray, np.ndarray],
        targets: tuple[Any, np.ndarray],
        query_thresholds: np.ndarray,
        target_thresholds: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Prefilter.candidates`."""
        codes, query_margin = queries
        packed, target_margin = targets
        by_query, by_target = deciding_sides(query_thresholds, target_thresholds)
        lowest = min(float(query_thresholds.min()), float(target_thresholds.min()))
        highest = max(float(query_thresholds.max()), float(target_thresholds.max()))
        if lowest == np.inf:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        if highest == np.inf:
            highest = max(float(t[t < np.inf].max(initial=lowest)) for t in (query_thresholds, target_thresholds))
        max_margin = float(query_margin.max())
        # output 1 is the lowest threshold of all, 250 the highest
        step = float(np.float32(max((highest - lowest + max_margin - float(query_margin.min())) / 249, 2.0**-12)))
        base = lowest - max_margin - step
        bias = (target_margin - base).astype(np.float32)
        scores = int8_product(codes, self.zero, packed, self.scale, bias, step)  # (m, n) uint8

        def output_level(similarity: np.ndarray) -> np.ndarray:
            # no pair needs less than 1: see base
            return np.clip(np.ceil((similarity - base) / step - _STEP_SLACK), 1, 255).astype(np.uint8)

        query_levels = output_level(query_thresholds - query_margin) if by_query else None
        positions = _nonzero_positions(scores)
        if positions is None:
            target_levels = output_level(target_thresholds - max_margin) if by_target else None
            positions = flat_positions(
                None if query_levels is None else scores >= query_levels[:, None],
                None if target_levels is None else scores >= target_levels[None, :],
            )
        selected = scores.ravel()[positions]
        rows, columns = rows_and_columns(positions, scores.shape[1])
        if query_levels is not None and not by_target:
            is_candidate = selected >= query_levels[rows]
        else:  # a target's threshold with its own query's margin, not with the largest of all
            threshold = np.minimum(query_thresholds[rows], target_thresholds[columns])
            is_candidate = selected >= output_level(threshold - query_margin[rows])
        return rows[is_candidate], columns[is_candidate]


def _nonzero_positions(scores: np.ndarray) -> np.ndarray | None:
    """Flat positions of the nonzero entries of a matrix (m, n) uint8 that is mostly 0, compared eight at a time; None
    where it is not mostly 0.
    """
    if scores.size % WORD:
        return None
    words = scores.ravel().view(np.uint64)
    nonzero_words = np.flatnonzero(words != 0)
    if len(nonzero_words) * WORD > scores.size // 4:
        return None
    at = np.flatnonzero(words[nonzero_words].view(np.uint8) != 0)
    return np.asarray(nonzero_words[at // WORD] * WORD + at % WORD)
