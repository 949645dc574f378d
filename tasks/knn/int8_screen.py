"""Which pairs of rows can reach a similarity at all: a cheap product with a proven bound says so, before anything is decided.

Pure functions and three screens behind one interface, used by tasks/knn/search.py: `Int8Screen` (8-bit codes of the rows' principal
coordinates, multiplied by oneDNN through torch), `FloatScreen` (a float32 product; small joins, and processors where the
8-bit product fails its check) and `TorchScreen` (a GPU's float16 product).
A screen may let a pair pass that is too far; it never holds one back that is near enough.

**The bound.** Stored rows x, y; P a (d, w) matrix of spectral norm at most 1; a = P'x - m and b = P'y - m, so a - b = P'(x - y)
whatever m is. Codes p, q with known errors |a - p| <= hx and |b - q| <= hy. Let <x, y> >= f >= low. Then

    |p - q| <= |a - b| + hx + hy <= |x - y| + hx + hy          (triangle; P shortens)
    |x - y|^2 = |x|^2 + |y|^2 - 2<x, y> <= |x|^2 + |y|^2 - 2f
    |p|^2 + |q|^2 - 2<p, q> = |p - q|^2 <= |x|^2 + |y|^2 - 2f + 2D(hx + hy) + 2hx^2 + 2hy^2

with D the largest |x - y| that a similarity of `low` leaves, D^2 = 2 max|x|^2 - 2 low. So

    f <= <p, q> + A(x) + A(y),    A(x) = (|x|^2 - |p|^2) / 2 + D hx + hx^2:

a pair whose right side stays below f is out for certain. A belongs to one row, so the screen is one integer product, a bias
per column and a threshold per row. Where the rows lie close together (a narrow encoder), subtracting the middle m costs
nothing and makes the codes finer; dropping coordinates costs only the distance that they hold. The idea of screening by a
quantised product with known residual norms is common in vector search; distances that a projection shortens are the
principle of the VA-file (Weber, Schek, Blott, VLDB 1998) and of GEMINI (Faloutsos and others, SIGMOD 1994).

*What rounding adds.* P is scaled below norm 1 by more than its rounding to float32. A float32 product over d terms errs by at
most d 2^-24 |x||p_k| a coordinate (to first order, any order of summation), so by sqrt(w) d 2^-24 |x| in all: `encode` adds it to h,
with 16 spare terms for the subtraction, the division and the norm. Codes are integers; sums of their products are exact in
int32. oneDNN turns them to float32, scales, adds the bias, rounds to nearest and saturates: half a step, and `_STEP_SLACK` covers the
float32 operations. Saturation is monotone, so it cannot hide a pair: a threshold is at most 255.

*Processors without VNNI* multiply u8 by s8 through 16-bit sums that saturate; a query's codes then have 7 bits (127 * 127 * 2 < 2^15).
`product_bits` finds out by multiplying the worst rows there are, not by the processor's name.

Measured (AMD EPYC with VNNI, one core): 360 to 400 G operations a second for u8 x s8 to u8 at 128 coordinates, 0.72 ns a pair, and 0.16 ns
to scan the result. torch.ops.onednn is what torch.compile calls for quantised models; torch.ops.quantized.linear gives
the same bytes but its tensors are deprecated, and the signed form (s8 x s8) has no fast kernel here (a thousandth of the speed).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

QUERY_ROWS = 1024  # rows of one product; with TARGET_ROWS others its result (3 MiB) stays in a processor's cache: 0.7 ns a pair, 1.05 with 8,192
TARGET_ROWS, GPU_TARGET_ROWS = 3072, 65_536
WORD = 8  # bytes of a product that are looked at together
TILE = 64  # columns of a product that are looked at together on a torch device
FLOAT_TARGET_ROWS = 2048  # of a float32 product: its result is four times as wide
WIDTHS = (64, 128, 192, 256, 384, 512)  # coordinates that codes may keep; oneDNN pads to 64 anyhow
LARGE_PAIRS = 200_000_000
LARGEST_SHARE = 0.2  # of the pairs that may survive the screen
SAMPLE_ROWS = 16_384  # rows that the axes are fitted to
TRIAL_QUERIES, TRIAL_TARGETS = 256, 2048  # rows that the width is chosen on
# What things cost, ns, to choose the width by; a wrong guess costs time, never a pair.
PAIR_NS, PAIR_COORDINATE_NS, PLACE_NS, SURVIVOR_COORDINATE_NS = 0.20, 0.0044, 25.0, 3.0
_STEP_SLACK = 0.55  # output steps: half for rounding to nearest, the rest for float32
_LEVELS = 127  # codes are -127..127


def widened(rows: np.ndarray, is_own: bool = False) -> np.ndarray:
    """float16 as float32: by torch where it is loaded (0.07 us for 512 numbers), else by numpy (0.87). `is_own`: a copy, in order, that may be written."""
    torch = sys.modules.get("torch")
    if torch is None or rows.dtype != np.float16:
        return rows.astype(np.float32)
    return torch.from_numpy(rows if is_own else np.require(rows, requirements=["C", "W"])).float().numpy()


def load_for(pairs: int, d: int) -> bool:
    """Whether a join is large enough for the 8-bit screen; torch is loaded then. Its import and the codes cost what some 10^8 pairs cost in float32."""
    if pairs < LARGE_PAIRS or d < WIDTHS[0]:
        return False
    importlib.import_module("torch")
    return True


class Rows(Protocol):
    """(n, d) float16: a numpy array, or rows that are mapped from files where they are asked for (`store.MappedRows`)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def take(self, indices: np.ndarray, axis: Any = 0) -> np.ndarray: ...
    def __getitem__(self, rows: Any) -> np.ndarray: ...


def in_memory(rows: Rows) -> np.ndarray:
    """(n, d) float16, all of the rows."""
    return rows if isinstance(rows, np.ndarray) else rows[np.arange(len(rows))]


# --- codes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axes:
    """What rows are coded along.

    Attributes:
        matrix: (d, w) float32, spectral norm at most 1.
        middle: (w,) float32, taken away from every projected row.
        reach: largest coordinate that is coded without being cut.
    """

    matrix: np.ndarray
    middle: np.ndarray
    reach: float


@dataclass(frozen=True)
class Codes:
    """Rows as small integers, and what is known of each row.

    Attributes:
        codes: (n, w) int8.
        scale: value of one level.
        norm2: (n,) float64, |x|^2 of the stored row.
        code_norm2: (n,) float64, |p|^2.
        error: (n,) float64, h: at least the distance between the projected row and its code.
    """

    codes: np.ndarray
    scale: float
    norm2: np.ndarray
    code_norm2: np.ndarray
    error: np.ndarray

    def margin(self, distance: float) -> np.ndarray:
        """A of the bound, (n,) float64, for D = `distance`."""
        return (self.norm2 - self.code_norm2) / 2 + distance * self.error + self.error**2

    def take(self, rows: np.ndarray) -> Codes:
        """Some of the rows."""
        return Codes(self.codes[rows], self.scale, self.norm2[rows], self.code_norm2[rows], self.error[rows])


@dataclass(frozen=True)
class Coded:
    """Rows of a corpus coded earlier: what depends on a row alone is not worked out again when others come."""

    axes: Axes
    codes: Codes


def principal_axes(sample: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions by falling variance, as columns (d, d) float64, and the sample's mean (d,) float64.

    Args:
        sample: (m, d), any float type.
    """
    rows = widened(sample)
    mean = rows.mean(axis=0, dtype=np.float64)
    rows = rows - mean.astype(np.float32)
    _, directions = np.linalg.eigh((rows.T @ rows).astype(np.float64))
    return directions[:, ::-1], mean


def axes_of(directions: np.ndarray, mean: np.ndarray, sample: np.ndarray, width: int, seed: int = 0) -> Axes:
    """The first `width` directions, turned among themselves so that all coordinates spread alike (one scale serves all).

    Args:
        directions: (d, d) float64, orthonormal columns.
        mean: (d,) float64.
        sample: (m, d) rows that `reach` is measured on; a row that reaches further has a larger error, nothing else.
        width: coordinates to keep, 1..d.
        seed: of the turn.
    """
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))
    matrix = directions[:, :width] @ turn
    norm = float(np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[-1]))
    # rounding to float32 moves the norm by at most 2^-24 sqrt(width) < 2e-6
    matrix = (matrix / (norm * (1 + 1e-5))).astype(np.float32)
    middle = (mean @ matrix.astype(np.float64)).astype(np.float32)
    coordinates = widened(sample[:4096]) @ matrix - middle
    return Axes(matrix, middle, max(float(np.quantile(np.abs(coordinates), 0.9999)) if coordinates.size else 0.0, 1e-6))


def code_scale(axes: Axes, levels: int = _LEVELS) -> float:
    """Value of one level of codes along the axes."""
    return float(np.float32(axes.reach / levels))


def encode(vectors: Rows, axes: Axes, levels: int = _LEVELS, block: int = 1024) -> Codes:
    """Code rows along the axes.

    Args:
        vectors: (n, d) float16.
        axes: what to code along.
        levels: codes are -levels..levels.
        block: rows at a time, which bounds the memory.
    """
    n, (d, width) = len(vectors), axes.matrix.shape
    scale = code_scale(axes, levels)
    codes = np.empty((n, width), np.int8)
    norm2, code_norm2, error = np.empty(n), np.empty(n), np.empty(n)
    for start in range(0, n, block):
        rows = slice(start, start + block)
        x = widened(vectors[rows])
        z = x @ axes.matrix
        z -= axes.middle
        q = np.clip(np.rint(z * np.float32(1 / scale)), -levels, levels)
        norm2[rows] = np.einsum("nd,nd->n", x, x) * (1 + (d + 2) * 2.0**-24)  # at least |x|^2
        codes[rows] = q
        code_norm2[rows] = np.einsum("nw,nw->n", q, q).astype(np.float64) * scale**2  # integers below 2^24: exact in float32
        z -= q * np.float32(scale)
        rounding = (d + 16) * 2.0**-24 * np.sqrt(width) * (1 + np.sqrt(norm2[rows]))
        error[rows] = np.sqrt(np.einsum("nw,nw->n", z, z)) * (1 + 1e-4) + rounding
    return Codes(codes, scale, norm2, code_norm2, error)


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
        torch.from_numpy(queries), scale, zero, packed, one, none, torch.from_numpy(bias), step, 0, torch.uint8, "none", [], ""
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


class Screen(Protocol):
    """Blocks of rows in, pairs that may reach their floor out."""

    target_rows: int

    def queries(self, rows: np.ndarray) -> Any:
        """Prepare some rows of the query side."""
        ...

    def targets(self, rows: np.ndarray) -> Any:
        """Prepare some rows of the target side; kept as long as a join runs."""
        ...

    def hits(self, queries: Any, targets: Any, query_floors: np.ndarray, target_floors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns (k,) of every pair whose similarity may be at least the lower of its two floors.

        Args:
            queries: (m rows) of `queries`.
            targets: (n rows) of `targets`.
            query_floors: (m,) float64; inf where the query collects nothing.
            target_floors: (n,) float64; inf where the target collects nothing.
        """
        ...


def _which_sides(query_floors: np.ndarray, target_floors: np.ndarray) -> tuple[bool, bool]:
    """Whether a query's floor, and whether a target's floor, may be the lower one."""
    low_query, low_target = float(query_floors.min()), float(target_floors.min())
    return low_query <= float(target_floors.max()) and low_query < np.inf, low_target < float(query_floors.max())


def _flat(queries: np.ndarray | None, targets: np.ndarray | None) -> np.ndarray:
    if queries is None or targets is None:
        only = queries if targets is None else targets
        return np.flatnonzero(only) if only is not None else np.zeros(0, np.int64)
    return np.flatnonzero(np.logical_or(queries, targets, out=queries))


def rows_and_columns(places: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat places in a matrix as rows and columns; np.divmod is several times as slow."""
    rows = places // width
    return rows, places - rows * width


class FloatScreen:
    """A float32 product: over d terms it errs by at most (d + 8) 2^-23 for rows of length at most 1.005."""

    def __init__(self, queries: Rows, targets: Rows) -> None:
        """`queries` (m, d) and `targets` (n, d) float16."""
        self.query_vectors, self.target_vectors = queries, targets
        self.slack = (queries.shape[1] + 8) * 2.0**-23
        self.target_rows = FLOAT_TARGET_ROWS

    def queries(self, rows: np.ndarray) -> np.ndarray:
        return widened(self.query_vectors[rows])

    def targets(self, rows: np.ndarray) -> np.ndarray:
        return rows  # widened when it is their turn: float32 rows of a whole corpus would not fit

    def hits(self, queries: np.ndarray, targets: np.ndarray, query_floors: np.ndarray, target_floors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ widened(self.target_vectors[targets]).T  # (m, n)
        by_query, by_target = _which_sides(query_floors, target_floors)
        places = _flat(
            scores >= (query_floors - self.slack - 1e-7).astype(np.float32)[:, None] if by_query else None,
            scores >= (target_floors - self.slack - 1e-7).astype(np.float32)[None, :] if by_target else None,
        )
        return rows_and_columns(places, scores.shape[1])


class Int8Screen:
    """The 8-bit product of the module's text."""

    def __init__(self, queries: Rows, targets: Rows, axes: Axes, *, low: float, bits: int, threads: int = 1, codes: Codes | None = None) -> None:
        """`queries` (m, d) and `targets` (n, d) float16 (the same array for a self-join); `bits` of the queries' codes, 8 or 7; `codes` of the targets."""
        import torch

        torch.set_num_threads(threads)
        self.bits, self.target_rows = bits, TARGET_ROWS
        self.target_codes = encode(targets, axes) if codes is None else codes
        levels = _LEVELS if bits == 8 else 63
        self.query_codes = self.target_codes if queries is targets and bits == 8 else encode(queries, axes, levels)
        longest = max((float(c.norm2.max()) for c in (self.query_codes, self.target_codes) if len(c.norm2)), default=1.0)
        distance = float(np.sqrt(max(0.0, 2 * longest - 2 * low)))
        self.query_margin, self.target_margin = self.query_codes.margin(distance), self.target_codes.margin(distance)
        self.scale = self.query_codes.scale * self.target_codes.scale
        self.zero = 2 ** (bits - 1)

    def queries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.query_codes.codes[rows].view(np.uint8) + np.uint8(self.zero), self.query_margin[rows]  # the sum wraps round as it should

    def targets(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        return pack(self.target_codes.codes[rows]), self.target_margin[rows]

    def hits(
        self, queries: tuple[np.ndarray, np.ndarray], targets: tuple[Any, np.ndarray], query_floors: np.ndarray, target_floors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        codes, query_margin = queries
        packed, target_margin = targets
        by_query, by_target = _which_sides(query_floors, target_floors)
        least, most = min(float(query_floors.min()), float(target_floors.min())), max(float(query_floors.max()), float(target_floors.max()))
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
            return np.clip(np.ceil((needed - base) / step - _STEP_SLACK), 1, 255).astype(np.uint8)  # no pair needs less than 1: see base

        of_query = threshold(query_floors - query_margin) if by_query else None
        places = _nonzero(found)
        if places is None:
            of_target = threshold(target_floors - far) if by_target else None
            places = _flat(None if of_query is None else found >= of_query[:, None], None if of_target is None else found >= of_target[None, :])
        scores = found.ravel()[places]
        rows, columns = rows_and_columns(places, found.shape[1])
        if of_query is not None and not by_target:
            is_hit = scores >= of_query[rows]
        else:  # a target's floor with its own query's margin, not with the largest of all
            is_hit = scores >= threshold(np.minimum(query_floors[rows], target_floors[columns]) - query_margin[rows])
        return rows[is_hit], columns[is_hit]


def _nonzero(found: np.ndarray) -> np.ndarray | None:
    """Flat places of what is not 0 in a matrix (m, n) uint8 that is mostly 0: eight numbers are looked at together. None where it is not."""
    if found.size % WORD:
        return None
    words = found.ravel().view(np.uint64)
    some = np.flatnonzero(words != 0)
    if len(some) * WORD > found.size // 4:
        return None
    at = np.flatnonzero(words[some].view(np.uint8) != 0)
    return np.asarray(some[at // WORD] * WORD + at % WORD)


class TorchScreen:
    """A product on a torch device, a GPU where there is one: float16 rows, sums in float32; on a CPU all of it in float32.

    On a GPU the result is rounded to float16, so a score errs by at most 2^-11 of itself; the sums by (d + 8) 2^-23 with a factor of 4 for tensor
    cores, which cut instead of rounding. Reduced-precision sums (split-K in float16) and TF32 are turned off while it works.
    The rows lie on the device as a whole where half of its free memory holds them, else each block travels when it is its turn.
    """

    def __init__(self, queries: np.ndarray, targets: np.ndarray, device: str | None = None, is_half: bool | None = None) -> None:
        """`queries` (m, d) and `targets` (n, d) float16; `device`: of torch, the first GPU or the CPU when None; `is_half`: as on a GPU."""
        import torch

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        is_gpu = self.device.type == "cuda"
        is_half = is_gpu if is_half is None else is_half
        self.dtype = torch.float16 if is_half else torch.float32
        d = queries.shape[1]
        self.slack = (d + 8) * 2.0**-23 * (4 if is_half else 1) + (1.02 * 2.0**-11 if is_half else 0.0) + 1e-7
        self.target_rows = GPU_TARGET_ROWS if is_gpu else FLOAT_TARGET_ROWS
        self.query_vectors, self.target_vectors = queries, targets
        self.resident: Any = None
        if is_gpu:
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_tf32 = False
            if 2 * targets.nbytes < torch.cuda.mem_get_info(self.device)[0]:
                self.resident = torch.from_numpy(np.ascontiguousarray(targets)).to(self.device)

    def _rows(self, vectors: np.ndarray, rows: np.ndarray) -> Any:
        import torch

        if self.resident is not None and vectors is self.target_vectors:
            return self.resident[torch.from_numpy(rows).to(self.device)]
        return torch.from_numpy(vectors[rows]).to(self.device).to(self.dtype)

    def queries(self, rows: np.ndarray) -> Any:
        return self._rows(self.query_vectors, rows)

    def targets(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def near(self, queries: Any, targets: Any, query_floors: Any, target_floors: Any) -> tuple[Any, Any]:
        """Places (i, j) of `hits` as tensors on the device.

        A product is larger than what is left of it, and reading it is what costs beside making it. So it is read once, for the largest score of
        each TILE columns; only tiles that may hold a hit are looked at again.

        Args:
            queries: (m, d) tensor, of `queries`.
            targets: (n, d) tensor, of `loaded`.
            query_floors, target_floors: (m,) and (n,) float64 tensors.
        """
        import torch

        m, n = len(queries), len(targets)
        by_query, by_target = ((floors - self.slack).float() for floors in (query_floors, target_floors))
        scores = queries @ targets.T  # (m, n)
        if over := -n % TILE:
            scores = torch.nn.functional.pad(scores, (0, over), value=-torch.inf)
            by_target = torch.nn.functional.pad(by_target, (0, over), value=torch.inf)
        tiles, by_target = scores.view(m, -1, TILE), by_target.view(-1, TILE)
        # compared in float32, however the scores are stored
        row, tile = (tiles.amax(2) >= torch.minimum(by_query[:, None], by_target.amin(1)[None, :])).nonzero().unbind(1)
        which, column = (tiles[row, tile] >= torch.minimum(by_query[row][:, None], by_target[tile])).nonzero().unbind(1)
        return row[which], tile[which] * TILE + column

    def loaded(self, rows: np.ndarray) -> Any:
        """Some target rows on the device, (n, d)."""
        return self._rows(self.target_vectors, rows)

    def hits(self, queries: Any, targets: np.ndarray, query_floors: np.ndarray, target_floors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        floors = [torch.from_numpy(np.ascontiguousarray(f, np.float64)).to(self.device) for f in (query_floors, target_floors)]
        i, j = self.near(queries, self.loaded(targets), *floors)
        return np.asarray(i.cpu().numpy(), np.int64), np.asarray(j.cpu().numpy(), np.int64)


def best_axes(sample: np.ndarray, low: float, widths: Sequence[int] = WIDTHS, seed: int = 0) -> tuple[Axes, float]:
    """The axes whose screen is expected to be fastest, and the share of pairs that survive it, measured on part of the sample.

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
            reachable = values[a] @ values[b].T + margin[a, None].astype(np.float32) + margin[None, b].astype(np.float32)
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
    if bits == 0 or (kind == "auto" and not is_worthwhile(axes, share)):  # nearly everything survives: the product would be paid for nothing
        return FloatScreen(queries, targets)
    return Int8Screen(queries, targets, axes, low=low, bits=bits, threads=threads)
