"""CIRCO's metrics: mAP@K over all ground truths, Recall@K of the one target; by the official definition.

AP@K = sum over ranks i <= K of precision@i * relevant(i), divided by min(number of ground truths, K). The reference
image is not taken out of the ranking. Source: miccunifi/CIRCO, src/evaluation.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.errors import DataError

RANKS = (5, 10, 25, 50)


def rank_gallery(queries: np.ndarray, gallery: np.ndarray, top: int) -> np.ndarray:
    """Positions of the `top` most similar gallery rows, by falling similarity, ties by position.

    Args:
        queries: (n, d) unit rows.
        gallery: (m, d) unit rows.
        top: a count; cut to m.
    Returns:
        (n, min(top, m)) int64.
    """
    top = min(top, len(gallery))
    out = np.zeros((len(queries), top), np.int64)
    for start in range(0, len(queries), 256):
        scores = queries[start : start + 256].astype(np.float32) @ gallery.astype(np.float32).T
        out[start : start + 256] = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return out


def average_precisions(
    ranked: Sequence[int | str], right: Sequence[int | str], ranks: Sequence[int] = RANKS
) -> dict[str, float]:
    """map_at_K of one query: its AP@K, 0..1.

    Args:
        ranked: image ids, best first, each once.
        right: all right image ids, at least one.
        ranks: the K.
    """
    answers = set(right)
    hits = np.array([image in answers for image in ranked], bool)
    precisions = np.cumsum(hits) * hits / np.arange(1, len(hits) + 1)
    return {f"map_at_{k}": float(precisions[:k].sum()) / min(len(answers), k) for k in ranks}


def score(
    predictions: Mapping[int, Sequence[int | str]],
    ground_truths: Mapping[int, Sequence[int | str]],
    targets: Mapping[int, int | str],
    ranks: Sequence[int] = RANKS,
    recall_ranks: Sequence[int] = (1, *RANKS),
) -> dict[str, float]:
    """map_at_K and recall_at_K, means over the queries, 0..1.

    Args:
        predictions: per query id the ranked image ids, best first.
        ground_truths: per query id all right image ids.
        targets: per query id the one target, which Recall@K alone looks at.
        ranks: the K of mAP.
        recall_ranks: the K of Recall.
    Raises:
        DataError: a query without predictions or ground truths, fewer predictions than ranks need are no error, but a
            image predicted twice for one query is.
    """
    if missing := sorted(set(ground_truths) ^ set(predictions)):
        raise DataError(
            f"predictions and ground truths differ in {len(missing)} queries, the first {missing[0]}; every query needs both"
        )
    sums: dict[str, float] = {f"map_at_{k}": 0.0 for k in ranks} | {f"recall_at_{k}": 0.0 for k in recall_ranks}
    for query, ranked in predictions.items():
        if len(set(ranked)) != len(ranked):
            raise DataError(
                f"query {query}: {len(ranked) - len(set(ranked))} images are predicted twice; a ranking names each once"
            )
        right = set(ground_truths[query])
        if not right:
            raise DataError(f"query {query}: no ground truth")
        for name, value in average_precisions(ranked, tuple(right), ranks).items():
            sums[name] += value
        for k in recall_ranks:
            sums[f"recall_at_{k}"] += float(targets[query] in ranked[:k])
    return {name: total / max(1, len(predictions)) for name, total in sums.items()}
