"""Calibrate: propose each encoder's similarity window from the embeddings that are stored.

    python -m tasks.calibrate [--write] [--low-quantile 0.99] [--high-quantile 0.995]

Cosines of different encoders are distributed very differently, so a window belongs to an encoder and a corpus. Reads
data/embeddings; prints both distributions; with --write puts the numbers in params.yaml, `mine.windows`, the rest of the file
untouched. Run it after `embed`, before `mine`; a run never calibrates itself, so that a version's windows are numbers.

low = the `low-quantile` of random pairs: at 0.99 one stranger in a hundred is as near, and `mine.neighbours` takes the nearest
of those above. high = the `high-quantile` of nearest neighbours (copies are gone since ingest: what is nearest of all is suspicious).
Where low would not lie below high, or above what half the pictures' neighbours reach, low is the median of the 10th nearest.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.config import load_params, parse_params, read_raw, resolve
from tasks.errors import ConfigError, DataError, TasksError
from tasks.store import Store

ROLES = ("semantic", "pattern", "caption")
RANDOM_PAIRS = 200_000
QUERIES = 2_000  # pictures whose neighbours are looked at
NEIGHBOURS = 10
SHOWN = (0.01, 0.5, 0.9, 0.99, 0.995, 0.999)


@dataclass(frozen=True)
class Distribution:
    """Cosines of a corpus under one encoder, sorted: random pairs, nearest neighbours, 10th nearest."""

    random: np.ndarray
    nearest: np.ndarray
    tenth: np.ndarray


def distribution(vectors: np.ndarray, seed: int = 0) -> Distribution:
    """Sample the cosines of a corpus.

    Args:
        vectors: (n, d) float16, rows of unit length.
        seed: of the sample.
    Raises:
        DataError: fewer than three rows.
    """
    n = len(vectors)
    if n < 3:
        raise DataError(f"calibrate: {n} vectors; at least 3 are needed to see a distribution")
    rng = np.random.default_rng(seed)
    a = rng.integers(0, n, RANDOM_PAIRS)
    b = (a + rng.integers(1, n, RANDOM_PAIRS)) % n  # never the row itself
    random = np.concatenate(
        [
            np.einsum("md,md->m", vectors[a[s : s + 20_000]].astype(np.float32), vectors[b[s : s + 20_000]].astype(np.float32))
            for s in range(0, RANDOM_PAIRS, 20_000)
        ]
    )
    rows = np.sort(rng.permutation(n)[:QUERIES])
    k = min(NEIGHBOURS, n - 1)
    best = np.full((len(rows), k), -2.0, np.float32)
    for start in range(0, n, 65_536):  # (queries, block) at a time
        block = vectors[start : start + 65_536].astype(np.float32)
        scores = vectors[rows].astype(np.float32) @ block.T
        own = np.flatnonzero((rows >= start) & (rows < start + len(block)))
        scores[own, rows[own] - start] = -2.0
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :k]
    return Distribution(np.sort(random), np.sort(best[:, 0]), np.sort(best[:, -1]))


def propose(found: Distribution, *, low_quantile: float, high_quantile: float) -> tuple[float, float]:
    """Window (low, high), rounded to 4 decimals: see the module's text."""
    high = min(float(np.quantile(found.nearest, high_quantile)), 1.0)
    low = float(np.quantile(found.random, low_quantile))
    if low >= min(high, float(np.median(found.nearest))):
        low = float(np.median(found.tenth))
    low = min(low, high - 0.0002)
    return round(low, 4), round(high, 4)


def with_windows(text: str, windows: dict[str, tuple[float, float]]) -> str:
    """params.yaml's text with `mine.windows` replaced, all other lines as they were.

    Raises:
        ConfigError: no `windows:` below `mine:`.
    """
    lines = text.split("\n")
    try:
        mine = next(n for n, line in enumerate(lines) if line.rstrip() == "mine:")
        start = next(n for n, line in enumerate(lines[mine + 1 :], mine + 1) if line.startswith("  windows:"))
    except StopIteration:
        raise ConfigError("params.yaml: no block 'windows:' below 'mine:'; add `mine:\\n  windows: {}`") from None
    if any(line[:1].strip() for line in lines[mine + 1 : start]):
        raise ConfigError("params.yaml: no block 'windows:' below 'mine:'; add `mine:\\n  windows: {}`")
    end = start + 1
    while end < len(lines) and lines[end].startswith("   "):
        end += 1
    block = ["  windows:", *(f"    {role}: {{low: {low:.4f}, high: {high:.4f}}}" for role, (low, high) in windows.items())]
    return "\n".join(lines[:start] + block + lines[end:])


def main(argv: list[str] | None = None) -> int:
    """Print the proposals; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("."), help="the run's worktree (default: the current folder)")
    parser.add_argument("--write", action="store_true", help="put the windows in params.yaml")
    parser.add_argument("--low-quantile", type=float, default=0.99, help="of random pairs, 0..1")
    parser.add_argument("--high-quantile", type=float, default=0.995, help="of nearest neighbours, 0..1")
    args = parser.parse_args(argv)
    try:
        params, store, path = load_params(args.root / "params.yaml"), Store(args.root), args.root / "params.yaml"
        if not (0 <= args.low_quantile <= 1 and 0 <= args.high_quantile <= 1):
            raise ConfigError(f"calibrate: quantiles {args.low_quantile}, {args.high_quantile}; expected 0..1")
        windows: dict[str, tuple[float, float]] = {}
        for role in (r for r in ROLES if r in params.embed.encoders):
            _, vectors, revision = store.read_embeddings(role)
            found = distribution(vectors, params.open_run.seed)
            windows[role] = propose(found, low_quantile=args.low_quantile, high_quantile=args.high_quantile)
            print(f"{role} ({params.embed.encoders[role].model}, {revision}): {len(vectors)} vectors")
            for name, values in (("random pairs", found.random), ("nearest", found.nearest), ("10th nearest", found.tenth)):
                print(f"  {name:13}" + "  ".join(f"q{q:g} {np.quantile(values, q):.4f}" for q in SHOWN))
            inside = float(np.mean((found.nearest >= windows[role][0]) & (found.nearest < windows[role][1])))
            print(f"  window        low {windows[role][0]:.4f}, high {windows[role][1]:.4f}: {inside:.0%} of the pictures have their nearest inside")
        if args.write:
            text = with_windows(path.read_text(encoding="utf-8"), windows)
            store.write_bytes(path, text.encode())
            parse_params(resolve(read_raw(path)), where=str(path))
            print(f"written to {path}: mine.windows")
    except TasksError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
