"""mAP@K and Recall@K against the official definition written out, on made-up rankings and on CIRCO's own files."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.evaluate.metrics import rank_gallery, score

CIRCO = Path("../shared/benchmarks/circo")


def naive_ap(ranked: list[int], right: list[int], k: int) -> float:
    """AP@K = sum of precision@i over the relevant ranks i <= K, divided by min(|GT|, K)."""
    found, total = 0, 0.0
    for i, image in enumerate(ranked[:k], start=1):
        if image in right:
            found += 1
            total += found / i
    return total / min(len(right), k)


def test_by_hand():
    scores = score({0: [3, 1, 2]}, {0: [1, 2, 9]}, {0: 1}, ranks=(2, 5), recall_ranks=(1, 2))
    assert scores == {"map_at_2": 0.5 / 2, "map_at_5": (1 / 2 + 2 / 3) / 3, "recall_at_1": 0.0, "recall_at_2": 1.0}


queries = st.lists(
    st.tuples(st.permutations(range(12)), st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True)),
    min_size=1,
    max_size=5,
)


@given(queries)
def test_it_is_the_definition(made: list):
    ranked = {n: list(r) for n, (r, _) in enumerate(made)}
    right = {n: g for n, (_, g) in enumerate(made)}
    scores = score(ranked, right, {n: g[0] for n, g in right.items()}, ranks=(1, 5, 50))
    for k in (1, 5, 50):
        assert scores[f"map_at_{k}"] == pytest.approx(np.mean([naive_ap(ranked[n], right[n], k) for n in ranked]))
    assert scores["recall_at_5"] == pytest.approx(np.mean([right[n][0] in ranked[n][:5] for n in ranked]))
    assert 0 <= scores["map_at_5"] <= 1


@pytest.mark.skipif(not CIRCO.is_dir(), reason=f"{CIRCO} is not here; the test above checks the same law")
def test_on_circos_own_annotations_and_submission():
    truth = {a["id"]: a for a in json.loads((CIRCO / "val.json").read_text())}
    submission = {int(k): v for k, v in json.loads((CIRCO / "submission_val.json").read_text()).items()}
    assert len(truth) == 220
    right = {n: a["gt_img_ids"] for n, a in truth.items()}
    scores = score(submission, right, {n: a["target_img_id"] for n, a in truth.items()})
    for k in (5, 10, 25, 50):
        assert scores[f"map_at_{k}"] == pytest.approx(np.mean([naive_ap(submission[n], right[n], k) for n in truth]))
    assert 0 < scores["map_at_5"] < 1 and scores["recall_at_5"] <= scores["recall_at_50"]


@pytest.mark.parametrize(
    ("predictions", "right", "message"),
    [({0: [1, 1]}, {0: [1]}, "twice"), ({}, {0: [1]}, "differ in 1"), ({0: [1]}, {0: []}, "no ground truth")],
)
def test_what_cannot_be_scored_is_refused(predictions: dict, right: dict, message: str):
    with pytest.raises(DataError, match=message):
        score(predictions, right, {0: 1})


def test_ranking_breaks_ties_by_position():
    gallery = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    assert rank_gallery(np.array([[1, 0], [0, 1]], np.float32), gallery, 9).tolist() == [[0, 2, 1], [1, 0, 2]]
