"""The exact join on a GPU: how much of the card's matrix rate it reaches, and what its half-precision product would
lose alone.

    python -m benchmarks.mine --device cuda [--n 1000000] [--dims 768] [--neighbours 12] [--low 0.8] [--high 0.96]

Rows like `clustered` (benchmarks/vectors.py), made on the device. matrix_tflops is the device's own rate, of the best
of three square products in float16 (float32 on a CPU); join_tflops is n^2 d / seconds, a multiplication and an addition
for each coordinate of each pair, looked at once; seconds are of the clock, with the rows' way to the device, window,
exact scoring and top-k included. Checked: of some rows, the neighbours are those of
a float32 product scored in float64 on the CPU (recall, 1 or a bug); recall_half is what the nearest by the float16
product alone would hold.

The last line is JSON: device, n, dims, neighbours, seconds, matrix_tflops, join_tflops, share (join / matrix), pairs,
recall, recall_half, is_equal, all_pairs_20m_h (20 million rows at this rate, hours), rss_mib, device_mib (peak).
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from benchmarks.measure import peak_mib

ASKED = 500  # rows whose neighbours are looked up exactly
SQUARE = {"cuda": 16_384, "cpu": 1024}


def clustered_on(device: Any, n: int, d: int, seed: int = 0) -> np.ndarray:
    """(n, d) float16 unit rows as benchmarks.vectors.clustered describes them, other draws."""
    import torch

    draw = torch.Generator(device).manual_seed(seed)
    spread = torch.arange(1, d + 1, device=device) ** -0.5
    subjects = max(1, n // 30)
    themes = torch.randn(2000, d, generator=draw, device=device)
    middles = themes[torch.randint(2000, (subjects,), generator=draw, device=device)] + 0.7 * torch.randn(
        subjects, d, generator=draw, device=device
    )
    turn = torch.linalg.qr(torch.randn(d, d, generator=draw, device=device))[0]
    out = np.empty((n, d), np.float16)
    for start in range(0, n, 1 << 17):
        count = min(1 << 17, n - start)
        rows = middles[torch.randint(subjects, (count,), generator=draw, device=device)] + 0.45 * torch.randn(
            count, d, generator=draw, device=device
        )
        out[start : start + count] = torch.nn.functional.normalize(rows * spread @ turn).half().cpu().numpy()
    return out


def waited(device: Any) -> float:
    """The clock, once the device has done what it was given, s."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matrix_rate(device: Any) -> float:
    """Best of three square products, TFLOP/s; one more before warms up."""
    import torch

    side = SQUARE.get(device.type, 1024)
    a = torch.randn(side, side, device=device, dtype=torch.float16 if device.type == "cuda" else torch.float32)
    took = []
    for _ in range(4):
        start = waited(device)
        a @ a
        took.append(waited(device) - start)
    return 2 * side**3 / min(took[1:]) / 1e12


def recall_half(
    vectors: np.ndarray, asked: np.ndarray, exact: tuple[np.ndarray, ...], neighbours: int, high: float, device: Any
) -> float:
    """Share of the exact neighbours among the nearest by a float16 product: each row has as many places as it has exact
    neighbours.
    """
    import torch

    queries = torch.from_numpy(vectors[asked]).to(device)
    best = torch.full((len(asked), neighbours), -2.0, device=device)
    rows = torch.zeros((len(asked), neighbours), dtype=torch.int64, device=device)
    own = torch.from_numpy(asked).to(device)
    for start in range(0, len(vectors), 1 << 16):
        block = torch.from_numpy(vectors[start : start + (1 << 16)]).to(device)
        scores = (queries @ block.T).float()
        number = torch.arange(start, start + len(block), device=device)
        scores[(number[None, :] == own[:, None]) | (scores >= high)] = -2.0
        both, names = torch.cat([best, scores], 1), torch.cat([rows, number.expand(len(asked), -1)], 1)
        best, places = both.topk(neighbours, 1)
        rows = names.gather(1, places)
    counts = np.bincount(np.searchsorted(asked, exact[0]), minlength=len(asked))
    found = {
        (int(a), int(t))
        for a, nearest, count in zip(asked, rows.cpu().numpy(), counts, strict=True)
        for t in nearest[:count]
    }
    wanted = set(zip(exact[0].tolist(), exact[1].tolist(), strict=True))
    return len(wanted & found) / len(wanted) if wanted else 1.0


def measure(name: str, n: int, dims: int, neighbours: int, low: float, high: float) -> dict[str, object]:
    """Measure, print, return the last line's object."""
    import torch

    from tasks.config import Window
    from tasks.knn.neighbours import Neighbours, recall
    from tasks.knn.search import join_in_window
    from tasks.knn.spec import SearchSpec

    device = torch.device(name)
    vectors = clustered_on(device, n, dims)
    print(f"{name}: {n} x {dims}, window [{low}, {high}), {neighbours} neighbours", flush=True)
    rate = matrix_rate(device)
    print(f"matrix product: {rate:.3f} TFLOP/s", flush=True)
    everyone, is_new = np.arange(n), np.ones(n, bool)
    warm = min(n, 4096)
    window = Window(low=low, high=high)
    spec = SearchSpec(window, neighbours, backend="torch", prefilter=f"torch:{name}")
    join_in_window(vectors[:warm], is_new[:warm], everyone[:warm], spec)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = waited(device)
    found = join_in_window(vectors, is_new, everyone, spec)
    seconds = waited(device) - start
    print(f"join: {seconds:.2f} s, {len(found[0])} rows", flush=True)
    asked = np.sort(np.random.default_rng(3).permutation(n)[:ASKED])
    exact = join_in_window(vectors, is_new, asked, SearchSpec(window, neighbours, prefilter="float32"))
    of_asked = np.isin(found[0], asked)
    ours = Neighbours(*(c[of_asked] for c in found))
    joined = n**2 * dims / seconds / 1e12
    figures: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "n": n,
        "dims": dims,
        "neighbours": neighbours,
        "seconds": round(seconds, 3),
        "matrix_tflops": round(rate, 4),
        "join_tflops": round(joined, 4),
        "share": round(joined / rate, 4),
        "pairs": len(found[0]),
        "recall": recall(ours, exact),
        "recall_half": round(recall_half(vectors, asked, exact, neighbours, high, device), 6),
        "is_equal": all(np.array_equal(a, b) for a, b in zip(ours, exact, strict=True)),
        "all_pairs_20m_h": round(20e6**2 * dims / (joined * 1e12) / 3600, 3),
        "rss_mib": peak_mib(),
        "device_mib": round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None,
    }
    print(json.dumps(figures), flush=True)
    return figures
