"""Which pairs of rows can reach a similarity at all: a cheap product with a proven bound says so, before anything is
decided.

Pure functions and three screens behind one interface, used by tasks/knn/search.py: `Int8Screen` (8-bit codes of the
rows' principal coordinates, multiplied by oneDNN through torch), `FloatScreen` (a float32 product; small joins, and
processors where the 8-bit product fails its check) and `TorchScreen` (a GPU's float16 product).
A screen may let a pair pass that is too far; it never holds one back that is near enough.

**The bound.** Stored rows x, y; P a (d, w) matrix of spectral norm at most 1; a = P'x - m and b = P'y - m, so a - b =
P'(x - y) whatever m is. Codes p, q with known errors |a - p| <= hx and |b - q| <= hy. Let <x, y> >= f >= low. Then

    |p - q| <= |a - b| + hx + hy <= |x - y| + hx + hy          (triangle; P shortens)
    |x - y|^2 = |x|^2 + |y|^2 - 2<x, y> <= |x|^2 + |y|^2 - 2f
    |p|^2 + |q|^2 - 2<p, q> = |p - q|^2 <= |x|^2 + |y|^2 - 2f + 2D(hx + hy) + 2hx^2 + 2hy^2

with D the largest |x - y| that a similarity of `low` leaves, D^2 = 2 max|x|^2 - 2 low. So

    f <= <p, q> + A(x) + A(y),    A(x) = (|x|^2 - |p|^2) / 2 + D hx + hx^2:

a pair whose right side stays below f is out for certain. A belongs to one row, so the screen is one integer product, a
bias per column and a threshold per row. Where the rows lie close together (a narrow encoder), subtracting the middle m
costs nothing and makes the codes finer; dropping coordinates costs only the distance that they hold. The idea of
screening by a quantised product with known residual norms is common in vector search; distances that a projection
shortens are the principle of the VA-file (Weber, Schek, Blott, VLDB 1998) and of GEMINI (Faloutsos and others, SIGMOD
1994).

*What rounding adds.* P is scaled below norm 1 by more than its rounding to float32. A float32 product over d terms errs
by at most d 2^-24 |x||p_k| a coordinate (to first order, any order of summation), so by sqrt(w) d 2^-24 |x| in all:
`encode` adds it to h, with 16 spare terms for the subtraction, the division and the norm. Codes are integers; sums of
their products are exact in int32. oneDNN turns them to float32, scales, adds the bias, rounds to nearest and saturates:
half a step, and `_STEP_SLACK` covers the float32 operations. Saturation is monotone, so it cannot hide a pair: a
threshold is at most 255.

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

from tasks.knn.codes import _LEVELS, Axes, Codes, encode
from tasks.knn.exact import Rows
from tasks.knn.screen import QUERY_ROWS, TARGET_ROWS, _flat, _which_sides, rows_and_columns

WORD = 8  # bytes of a product that are looked at together
_STEP_SLACK = 0.55  # output steps: half for rounding to nearest, the rest for float32


# --- codes ------------------------------------------------------------------------------------------------------------


# --- the product ------------------------------------------------------------------------------------------------------


def pack(codes: np.ndarray, query_rows: int = QUERY_ROWS) -> Any:
    """Target codes (n, w) int8 in oneDNN's own layout."""
    import torch

    return torch.ops.onednn.qlinear_prepack(torch.from_numpy(np.ascontiguousarray(codes)), [query_rows, codes.shape[1]])


def product(queries: np.ndarray, zero: int, packed: Any, scale: float, bias: np.ndarray, step: float) -> np.ndarray:
    """(queries - zero) @ targets' * scale + bias in steps of `step`, rounded to nearest and cut to 0..255.

    Args:
        queries: (m, w) uint8.
        zero: what stands for 0 in `queries`.
        packed: of `pack`, n rows.
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
    """How many bits a query's codes may have for the product to be right on this machine: 8, 7, or 0 for not at all."""
    rng = np.random.default_rng(width)
    try:
        for bits in (8, 7):
            most = 2**bits - 1
            queries = np.where(rng.random((64, width)) < 0.5, 0, most).astype(np.uint8)
            queries[0], queries[1] = most, 0
            targets = np.where(rng.random((96, width)) < 0.5, -_LEVELS, _LEVELS).astype(np.int8)
            targets[0], targets[1] = _LEVELS, -_LEVELS
            zero = (most + 1) // 2
            wanted = (queries.astype(np.float64) - zero) @ targets.T.astype(np.float64)
            step = float(np.float32(np.abs(wanted).max() / 120))
            bias = np.full(96, 127 * step, np.float32)
            found = product(queries, zero, pack(targets, 64), 1.0, bias, step)
            if np.abs(found - np.clip((wanted + bias) / step, 0, 255)).max() <= _STEP_SLACK:
                return bits
    except (AttributeError, RuntimeError):  # this torch has no such operator, or no kernel for it here
        return 0
    return 0


# --- screens ----------------------------------------------------------------------------------------------------------


class Int8Screen:
    """The 8-bit product of the module's text."""

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
        """`queries` (m, d) and `targets` (n, d) float16 (the same array for a self-join); `bits` of the queries' codes,
        8 or 7; `codes` of the targets.
        """
        import torch

        torch.set_num_threads(threads)
        self.bits, self.target_rows = bits, TARGET_ROWS
        self.target_codes = encode(targets, axes) if codes is None else codes
        levels = _LEVELS if bits == 8 else 63
        self.query_codes = self.target_codes if queries is targets and bits == 8 else encode(queries, axes, levels)
        longest = max(
            (float(c.norm2.max()) for c in (self.query_codes, self.target_codes) if len(c.norm2)), default=1.0
        )
        distance = float(np.sqrt(max(0.0, 2 * longest - 2 * low)))
        self.query_margin, self.target_margin = self.query_codes.margin(distance), self.target_codes.margin(distance)
        self.scale = self.query_codes.scale * self.target_codes.scale
        self.zero = 2 ** (bits - 1)

    def queries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # the sum wraps round as it should
        return self.query_codes.codes[rows].view(np.uint8) + np.uint8(self.zero), self.query_margin[rows]

    def targets(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        return pack(self.target_codes.codes[rows]), self.target_margin[rows]

    def hits(
        self,
        queries: tuple[np.ndarray, np.ndarray],
        targets: tuple[Any, np.ndarray],
        query_floors: np.ndarray,
        target_floors: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        codes, query_margin = queries
        packed, target_margin = targets
        by_query, by_target = _which_sides(query_floors, target_floors)
        least, most = (
            min(float(query_floors.min()), float(target_floors.min())),
            max(float(query_floors.max()), float(target_floors.max())),
        )
        if least == np.inf:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        if most == np.inf:
            most = max(float(f[f < np.inf].max(initial=least)) for f in (query_floors, target_floors))
        far = float(query_margin.max())
        # output 1 stands for the lowest threshold of all, 250 for the highest
        step = float(np.float32(max((most - least + far - float(query_margin.min())) / 249, 2.0**-12)))
        base = least - far - step
        found = product(codes, self.zero, packed, self.scale, (target_margin - base).astype(np.float32), step)  # (m, n)

        def threshold(needed: np.ndarray) -> np.ndarray:
            # no pair needs less than 1: see base
            return np.clip(np.ceil((needed - base) / step - _STEP_SLACK), 1, 255).astype(np.uint8)

        of_query = threshold(query_floors - query_margin) if by_query else None
        places = _nonzero(found)
        if places is None:
            of_target = threshold(target_floors - far) if by_target else None
            places = _flat(
                None if of_query is None else found >= of_query[:, None],
                None if of_target is None else found >= of_target[None, :],
            )
        scores = found.ravel()[places]
        rows, columns = rows_and_columns(places, found.shape[1])
        if of_query is not None and not by_target:
            is_hit = scores >= of_query[rows]
        else:  # a target's floor with its own query's margin, not with the largest of all
            is_hit = scores >= threshold(np.minimum(query_floors[rows], target_floors[columns]) - query_margin[rows])
        return rows[is_hit], columns[is_hit]


def _nonzero(found: np.ndarray) -> np.ndarray | None:
    """Flat places of what is not 0 in a matrix (m, n) uint8 that is mostly 0: eight numbers are looked at together.
    None where it is not.
    """
    if found.size % WORD:
        return None
    words = found.ravel().view(np.uint64)
    some = np.flatnonzero(words != 0)
    if len(some) * WORD > found.size // 4:
        return None
    at = np.flatnonzero(words[some].view(np.uint8) != 0)
    return np.asarray(some[at // WORD] * WORD + at % WORD)
