"""Licences and attributions of a triplet's images stand on its row, the strictest one by name."""

from pathlib import Path

import pytest

from tasks.judge.licences import keep_negatives, licence_columns, read_terms
from tasks.sources.strictness import strictest
from tasks.store import Store
from tests.support.tiny import save_version


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["CC0-1.0", "CC-BY-4.0", "CC0-1.0"], "CC-BY-4.0"),
        (["CC-BY-4.0", "CC-BY-SA-4.0"], "CC-BY-SA-4.0"),
        (["CC-BY-SA-3.0", "CC-BY-SA-4.0", "MIT"], "CC-BY-SA-3.0 AND CC-BY-SA-4.0"),
        (["CC-BY-NC-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0"], "CC-BY-NC-ND-4.0"),
        (["CC-BY-NC-ND-4.0", "unknown"], "unknown"),
        (["CC0-1.0", "", "our own terms"], "our own terms AND unknown"),
        ([], "unknown"),
    ],
)
def test_the_strictest_licence_is_named(licences: list[str], expected: str):
    assert strictest(licences) == expected


def test_a_triplet_has_the_terms_of_its_own_images():
    terms = {"q": ("CC0-1.0", ""), "t": ("CC-BY-4.0", "Ann"), "n": ("CC-BY-NC-4.0", "Bo")}
    row = {
        "query_image_id": "q",
        "target_image_id": "t",
        "negative_image_ids": ["q", "n"],
        "judge_negative": [0.1, 0.2],
    }
    row |= licence_columns(row, terms)
    assert (row["license_code"], row["negative_licenses"]) == ("CC-BY-NC-4.0", ["CC0-1.0", "CC-BY-NC-4.0"])
    assert (row["target_attribution"], row["negative_attributions"]) == ("Ann", ["", "Bo"])
    # without the strict negative the triplet may be used for more
    less = keep_negatives(row, [0])
    assert (less["license_code"], less["negative_licenses"], less["judge_negative"]) == (
        "CC-BY-4.0",
        ["CC0-1.0"],
        [0.1],
    )
    old = {"negative_image_ids": ["q", "n"], "judge_negative": [0.1, 0.2], "negative_licenses": None}
    assert keep_negatives(old, [1])["negative_licenses"] is None


def test_terms_are_read_of_the_images_that_pairs_name(tmp_path: Path):
    store = save_version(tmp_path)
    terms = read_terms(store, store.read_table("triplets"))
    assert len(terms) == 24 and set(terms.values()) == {("", "")}
    assert read_terms(Store(tmp_path / "none"), store.read_table("triplets")) == {}
