"""Bootstrap confidence intervals over queries: how much a score depends on which queries were drawn.

All models share the same draws, so differences between models are paired. Where a benchmark is a mean over tasks
(categories, datasets), queries are drawn within each task. Percentile intervals; source: Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13. The variation between training seeds is measured separately, by
`python -m tasks noise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def resampled_means(
    tables: Mapping[str, Sequence[np.ndarray]], *, seed: int, resamples: int = RESAMPLES
) -> dict[str, np.ndarray]:
    """Means over the resampled queries.

    Args:
        tables: label -> per task the values (n, k) of its queries; all labels with the same tasks, n and k.
        seed: of the draws.
        resamples: a count.
    Returns:
        label -> (resamples, k), the unweighted mean over the tasks; equal rows of different labels are the same draw.
    """
    out: dict[str, np.ndarray] = {}
    tasks = len(next(iter(tables.values()))) if tables else 0
    for task in range(tasks):
        count = len(next(iter(tables.values()))[task])
        # (resamples, n)
        draws = (
            np.random.default_rng([seed, task])
            .multinomial(count, np.full(count, 1 / count), size=resamples)
            .astype(np.float32)
        )
        for label, parts in tables.items():
            means = draws @ parts[task].astype(np.float32) / count
            out[label] = out.get(label, 0) + means / tasks
    return out


def interval(means: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval (low, high) of resampled means (resamples,), each rounded to 6 digits."""
    low, high = np.quantile(means.astype(np.float64), [(1 - level) / 2, (1 + level) / 2])
    return round(float(low), 6), round(float(high), 6)
