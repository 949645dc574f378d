"""The study's bookkeeping: which trainings, on which samples, and what the figures say; one training runs in
test_negative_controls.py.
"""

import itertools
import json
import random
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.data_efficiency import (
    ABLATIONS,
    ARMS,
    SHORTCUT_SHARES,
    Images,
    Job,
    Sample,
    jobs_of,
    largest_mix,
    main,
    over_worlds,
    plot,
    samples_of,
    steps_of,
    summary_of,
    triplet_samples,
    with_shortcuts,
)
from tasks.models.retrievers.clip import ClipRetriever
from tasks.sample.scenes import family
from tasks.store import Store

CLAIM = (("judged", 1), ("image_text", 70))


def test_every_arm_size_and_seed_once_and_image_text_at_the_factor_too():
    jobs = jobs_of(ARMS, [10, 100], [0, 1, 2], 10)
    assert len(jobs) == len(set(jobs)) == 4 * 2 * 3 + 1 * 3  # 10 x 10 is among the sizes already
    assert {j.size for j in jobs if j.arm == "image_text"} == {10, 100, 1000} and {
        j.size for j in jobs if j.arm == "judged"
    } == {10, 100}
    claim = jobs_of(["judged", "image_text"], [10, 100], [0], 70, is_claim_alone=True)
    assert [(j.arm, j.size) for j in claim] == [(a, k * n) for a, k in CLAIM for n in (10, 100)]
    more = jobs_of(["judged"], [10], [0], 70, ablations=ABLATIONS, cell=7)
    table = [j for j in more if j.filtered is not None]
    assert sorted(j.label for j in table) == [
        f"judge {a}, shortcut filter {b}" for a in ("off", "on") for b in ("off", "on")
    ] and {j.size for j in table} == {7}
    assert {j.negatives for j in more if j.arm == "judged"} == {"none", "query", "mined"}
    assert sorted(len(j.encoders) for j in more if j.arm == "unjudged" and j.encoders) == [1, 1, 1, 2, 2, 2, 3]
    assert len({j.key for j in more}) == len(more)


def test_a_larger_size_holds_the_smaller_one_and_encoders_choose():
    pool = [
        Sample(f"q{n}", f"t{n}", ("x",), mined_by=("semantic",) if n % 2 else ("caption", "pattern")) for n in range(20)
    ]
    small, large = (samples_of(Job("unjudged", size, 3), {"unjudged": pool}) for size in (5, 12))
    assert large[:5] == small and len(large) == 12
    assert samples_of(Job("unjudged", 5, 4), {"unjudged": pool}) != small, "another seed draws others"
    found = samples_of(Job("unjudged", 50, 0, encoders=("pattern",)), {"unjudged": pool})
    assert len(found) == 10 and all("pattern" in s.mined_by for s in found)


def test_the_filter_leaves_only_what_needs_both_halves():
    vectors = {
        name: np.array(row, np.float32)
        for name, row in {"q": (1, 0, 0), "near": (0.9, 0.1, 0), "far": (0.5, 0.6, 0.5)}.items()
    }
    pool = with_shortcuts(
        [Sample("q", "near", ("x",)), Sample("q", "far", ("y",))], vectors, np.array([[0, 0, 1], [0, 1, 0]], np.float32)
    )
    assert [s.is_shortcut for s in pool] == [True, True], "the image finds the near one, the text the far one"
    pool = with_shortcuts(pool, vectors, np.array([[0, 0, 1], [1, 0, 0]], np.float32))
    assert [s.is_shortcut for s in pool] == [True, False]
    assert [s.target for s in samples_of(Job("judged", 5, 0, filtered=True), {"judged": pool})] == ["far"]
    assert len(samples_of(Job("judged", 5, 0, filtered=False), {"judged": pool})) == 2


def test_a_training_has_the_share_of_shortcuts_that_is_asked_for_and_as_many_samples_at_each():
    pool = [Sample("q", f"t{n}", ("x",), is_shortcut=n % 3 == 0) for n in range(60)]
    size = largest_mix(pool)
    assert size == 40, "20 shortcuts are two fifths of 50, but 40 others are all of a training without any"
    for share in SHORTCUT_SHARES:
        samples = samples_of(Job("judged", size, 1, shortcut_share=share), {"judged": pool})
        assert len(set(samples)) == size and sum(s.is_shortcut for s in samples) == share * size
    other = samples_of(Job("judged", size, 2, shortcut_share=0.2), {"judged": pool})
    assert other != samples_of(Job("judged", size, 1, shortcut_share=0.2), {"judged": pool}), (
        "another seed draws others"
    )
    assert largest_mix(pool[:0]) == 0


def test_the_query_image_is_no_mined_negative():
    row = {
        "query_image_id": "q",
        "target_image_id": "t",
        "instructions": ["x"],
        "negative_image_ids": ["q", "a", "t"],
        "mined_by": ["semantic"],
    }
    assert triplet_samples([row]) == [Sample("q", "t", ("x",), ("a",), ("semantic",))]


def row(arm: str, size: int, composed: float, **more: Any) -> dict[str, Any]:
    return {"arm": arm, "size": size, "composed": composed, "samples": size, "label": "", **more}


def test_the_claim_is_said_whatever_came_out():
    runs = [
        row("judged", 10, 0.2),
        row("judged", 10, 0.3),
        row("judged", 20, 0.3),
        row("image_text", 700, 0.24),
        row("image_text", 1400, 0.31),
    ]
    runs += [row("judged", 20, 0.1, label="negatives: none"), row("unjudged", 20, 0.22, label="semantic+pattern")]
    figures = summary_of(runs, 70)
    assert figures["arms"]["judged"]["10"]["mean"] == 0.25 and figures["arms"]["judged"]["10"][
        "deviation"
    ] == pytest.approx(0.0707, abs=1e-4)
    assert [figures["claim"][n]["holds"] for n in ("10", "20")] == [True, False]
    assert set(figures["ablations"]) == {"negatives: none", "semantic+pattern"} and "unjudged" not in figures["arms"]
    drawn = ET.fromstring(plot(figures["arms"], 0.12))
    text = [e.text for e in drawn.iter() if e.tag.endswith("text")]
    assert {"judged", "image-text", "base", "10", "1400"} <= set(text)
    assert len([e for e in drawn.iter() if e.tag.endswith("circle")]) == 4


def a_study(judged: float, pairs: float, base: float, **changed: Any) -> dict[str, Any]:
    """figures.json of a study of one world: one seed of 10 judged triplets and 700 image-text pairs."""
    figures = summary_of([row("judged", 10, judged), row("image_text", 700, pairs)], 70)
    settings = {"steps": 150, "rate": 0.1, "dataset": str(judged), "benchmark": str(base)} | changed
    return figures | {"base": {"composed": base}, "settings": settings}


def test_studies_of_three_worlds_are_one_with_the_spread_over_the_worlds(tmp_path, capsys):
    studies = {"a": a_study(0.2, 0.1, 0.1), "b": a_study(0.3, 0.12, 0.13), "c": a_study(0.1, 0.11, 0.1)}
    for name, figures in studies.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "figures.json").write_text(json.dumps(figures))
    main(["--together", *(str(tmp_path / n) for n in studies), "--out", str(tmp_path / "all")])
    found = json.loads((tmp_path / "all" / "figures.json").read_text())
    assert found == json.loads(capsys.readouterr().out)
    judged = found["arms"]["judged"]["10"]
    assert judged["mean"] == pytest.approx(0.2) and judged["deviation"] == pytest.approx(0.1) and judged["worlds"] == 3
    assert found["claim"]["10"]["worlds_that_hold"] == 2 and found["claim"]["10"]["holds"] is False
    assert found["base"]["composed"] == pytest.approx(0.11)
    assert "over the worlds" in (tmp_path / "all" / "scaling.svg").read_text()
    for order in itertools.permutations(studies):
        other = over_worlds({name: studies[name] for name in order})
        assert {k: other[k] for k in ("arms", "claim", "base")} == {k: found[k] for k in ("arms", "claim", "base")}


def test_figures_of_what_is_done_need_no_further_training(tmp_path: Path):
    quick = ["--quick", "--sizes", "8", "--out", str(tmp_path)]
    trained = main(quick)["arms"]
    runs = (tmp_path / "runs.jsonl").read_text()
    more = main([*quick, "--seeds", "0", "1", "--done"])["arms"]
    assert more == trained and more["judged"]["8"]["seeds"] == 1
    assert (tmp_path / "runs.jsonl").read_text() == runs


def test_a_size_that_one_world_lacks_is_left_out_and_other_settings_are_refused(tmp_path):
    more = a_study(0.3, 0.1, 0.1)
    more["arms"]["judged"]["20"] = more["arms"]["judged"]["10"]
    assert list(over_worlds({"a": more, "b": a_study(0.2, 0.1, 0.1)})["arms"]["judged"]) == ["10"]
    with pytest.raises(ValueError, match=r"a and b differ in rate, expected the same settings"):
        over_worlds({"a": more, "b": a_study(0.2, 0.1, 0.1, rate=0.2)})
    with pytest.raises(ValueError, match="expected two or more"):
        over_worlds({"a": more})
    with pytest.raises(SystemExit, match=r"figures\.json is missing, expected the --out of a study that ended"):
        main(["--together", str(tmp_path), str(tmp_path), "--out", str(tmp_path / "all")])


def test_judged_samples_get_the_steps_of_the_pairs_that_they_are_compared_with():
    sizes, factor = [100, 800], 70
    steps = {
        (arm, size): steps_of(Job(arm, size, seed=0), sizes, factor, 150, 256)
        for arm, size in (("judged", 100), ("image_text", 7_000), ("judged", 800), ("image_text", 56_000))
    }
    assert steps["judged", 100] == steps["image_text", 7_000] == 150
    assert steps["judged", 800] == steps["image_text", 56_000] == 219


class CountingTower:
    """An image tower that counts what it encodes; a feature is the image's mean colour."""

    revision = "r1"
    encoded = 0

    def raw_image_features(self, images: list[Image.Image]) -> np.ndarray:
        self.encoded += len(images)
        return np.array([np.asarray(image, np.float32).mean(axis=(0, 1)) for image in images])


def test_a_study_that_was_ended_encodes_no_image_twice(tmp_path: Path):
    drawn = {f"drawn:{n}": scene for n, scene in enumerate(family(random.Random(0), "corpus", 3))}
    first, again = CountingTower(), CountingTower()
    images = Images(cast(ClipRetriever, first), Store(tmp_path), drawn, tmp_path / "features")
    images.add(["drawn:0", "drawn:1", "drawn:0"])
    kept = Images(cast(ClipRetriever, again), Store(tmp_path), drawn, tmp_path / "features")
    kept.add(["drawn:0", "drawn:1", "drawn:2"])
    assert (first.encoded, again.encoded) == (2, 1)
    assert torch.equal(kept.raw["drawn:1"], images.raw["drawn:1"]) and len(kept.raw) == 3
