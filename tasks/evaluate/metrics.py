"""CIRCO's main metric: AP@K over all ground truths of a query, by the official definition.

AP@K = sum over ranks i <= K of precision@i * relevant(i), divided by min(number of ground truths, K). The reference
image is not removed from the ranking. Source: miccunifi/CIRCO, src/evaluation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RANKS = (5, 10, 25, 50)


def average_precision_at_ranks(
    ranked: Sequence[int | str], ground_truths: Sequence[int | str], ranks: Sequence[int] = RANKS
) -> dict[str, float]:
    """map_at_{K} of one query: its AP@K, 0..1 (their mean over the queries is mAP@K).

    Args:
        ranked: image ids, best first, each once.
        ground_truths: ids of all correct images, at least one.
        ranks: the K.
    """
    correct = set(ground_truths)
    hits = np.array([image in correct for image in ranked], bool)
    precisions = np.cumsum(hits) * hits / np.arange(1, len(hits) + 1)
    return {f"map_at_{k}": float(precisions[:k].sum()) / min(len(correct), k) for k in ranks}
