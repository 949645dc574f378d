"""AP@K against the official definition written out, on made-up rankings and on CIRCO's own files."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.evaluate.metrics import RANKS, average_precision_at_ranks
from tasks.evaluate.protocols import PROTOCOLS, Prediction, Query

CIRCO = Path("../shared/benchmarks/circo")


def naive_ap(ranked: list[int], ground_truths: list[int], k: int) -> float:
    """AP@K = sum of precision@i over the relevant ranks i <= K, divided by min(|GT|, K)."""
    hits, total = 0, 0.0
    for i, image in enumerate(ranked[:k], start=1):
        if image in ground_truths:
            hits += 1
            total += hits / i
    return total / min(len(ground_truths), k)


def test_by_hand():
    assert average_precision_at_ranks([3, 1, 2], [1, 2, 9], ranks=(2, 5)) == {
        "map_at_2": 0.5 / 2,
        "map_at_5": (1 / 2 + 2 / 3) / 3,
    }


@given(st.permutations(range(12)), st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True))
def test_equals_the_definition(ranked: list[int], ground_truths: list[int]):
    values = average_precision_at_ranks(ranked, ground_truths, ranks=(1, 5, 50))
    for k in (1, 5, 50):
        assert values[f"map_at_{k}"] == pytest.approx(naive_ap(ranked, ground_truths, k))
        assert 0 <= values[f"map_at_{k}"] <= 1


@pytest.mark.skipif(not CIRCO.is_dir(), reason=f"{CIRCO} is not here; the test above checks the same definition")
def test_on_circos_own_annotations_and_submission():
    annotations = {a["id"]: a for a in json.loads((CIRCO / "val.json").read_text())}
    submission = {int(k): v for k, v in json.loads((CIRCO / "submission_val.json").read_text()).items()}
    assert len(annotations) == 220
    values = {n: average_precision_at_ranks(submission[n], a["gt_img_ids"]) for n, a in annotations.items()}
    for k in RANKS:
        ours = np.mean([v[f"map_at_{k}"] for v in values.values()])
        assert ours == pytest.approx(
            np.mean([naive_ap(submission[n], annotations[n]["gt_img_ids"], k) for n in values])
        )
        assert 0 < ours < 1


def test_a_ranking_that_names_an_image_twice_is_refused():
    query = Query("7", "ref", "make it red", ("a",))
    with pytest.raises(DataError, match="query 7: an image is predicted twice"):
        PROTOCOLS["circo"].measure(query, Prediction(["a", "a"]))
