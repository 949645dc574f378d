"""Several benchmarks in one evaluation, the figures beside each score, and the model card; with a fast model of mean
colours.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tasks.evaluate.stage
from tasks.config import BenchmarkConfig, Params, load_params
from tasks.errors import ConfigError
from tasks.evaluate.protocols import PROTOCOLS
from tasks.evaluate.scores import composed_scores
from tasks.fingerprints.perceptual import perceptual_hash, thumbnail
from tasks.models.retrievers.clip import ClipRetriever
from tasks.pages.model_card import ModelFacts, model_card
from tasks.records import schemas
from tasks.store import Store
from tasks.train.recipe import recipe_id

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128, 128, 128)}
BATCH = "2026.01.05"


class Colours:
    """A retriever of mean colours: the sum of an image and a colour word is nearer to images of that colour."""

    revision = "colours"
    content_encoder = ClipRetriever.content_encoder

    def __init__(self, model: str, **_: Any) -> None:
        self.weight = {"base": 0.0}.get(Path(model).name, 200.0)

    def raw_image_features(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.array([np.asarray(i.convert("RGB"), np.float32).mean((0, 1)) for i in images])

    def raw_text_features(self, texts: Sequence[str]) -> np.ndarray:
        said = [next((c for c in COLOURS if c in t), "grey") for t in texts]
        return np.array([[self.weight * v / 255 for v in COLOURS[c]] for c in said], np.float32)


def image(colour: str, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 120, (8, 8, 3))
    blocks = np.clip(np.array(COLOURS[colour]) * 0.6 + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(blocks).resize((64, 64), Image.Resampling.NEAREST)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CIRCO-like folder, a CIRR one and a CIRCO test split over 24 images, and a run's root with a candidate."""
    monkeypatch.setattr(tasks.evaluate.stage, "load_retriever", Colours)
    rng = random.Random(0)
    names = list(COLOURS)
    images = [(names[n % 4], n) for n in range(24)]
    annotations, pairs = [], []
    for n in range(20):
        reference, target = rng.sample(range(24), 2)
        wanted = [m for m in range(24) if images[m][0] == images[target][0] and m != reference]
        row = {
            "id": n,
            "reference_img_id": reference,
            "target_img_id": target,
            "gt_img_ids": wanted,
            "shared_concept": "blocks",
        }
        annotations.append(
            {
                **row,
                "relative_caption": f"is {images[target][0]}",
                "paraphrases": [f"turn it {images[target][0]}", "something else"],
            }
        )
        members = [f"p{m}" for m in dict.fromkeys([reference, target, *range(6)])][:6]
        pairs.append(
            {
                "pairid": n,
                "reference": f"p{reference}",
                "target_hard": f"p{target}",
                "caption": images[target][0],
                "img_set": {"members": members},
            }
        )
    for folder in (
        "circo/images",
        "cirr/captions",
        "cirr/image_splits",
        "cirr/dev",
        "hidden/annotations",
        "run/models/candidate",
        "run/models/promoted",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for n, (colour, seed) in enumerate(images):
        image(colour, seed).save(tmp_path / f"circo/images/{n}.png")
        image(colour, seed).save(tmp_path / f"cirr/dev/p{n}.png")
    (tmp_path / "hidden/images").symlink_to(tmp_path / "circo/images")
    (tmp_path / "circo/annotations.json").write_text(json.dumps(annotations))
    shown = [{k: v for k, v in a.items() if k not in ("target_img_id", "gt_img_ids")} for a in annotations]
    (tmp_path / "hidden/annotations/test.json").write_text(json.dumps(shown))
    (tmp_path / "cirr/captions/cap.rc2.val.json").write_text(json.dumps(pairs))
    (tmp_path / "cirr/image_splits/split.rc2.val.json").write_text(
        json.dumps({f"p{n}": f"./dev/p{n}.png" for n in range(24)})
    )
    return tmp_path


def with_benchmarks(world: Path, *named: tuple[str, str, str]) -> Params:
    params = load_params("params.yaml", "test")
    benchmarks = tuple(BenchmarkConfig(name=n, protocol=p, path=str(world / n), split=s) for n, p, s in named)  # type: ignore[arg-type]
    changes = {"benchmark": benchmarks, "truth": None, "device": "cpu"}
    train = params.train.model_copy(update={"base_model": "base", "held_out_share": 0.0})
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update=changes), "train": train})


ALL = (("circo", "circo", "val"), ("cirr", "cirr", "val"), ("hidden", "circo", "test"))


def test_several_benchmarks_each_by_its_own_protocol(world: Path):
    store = Store(world / "run")
    report = tasks.evaluate.stage.run(with_benchmarks(world, *ALL), store)
    found = json.loads((world / "run/reports/evaluation.json").read_text())
    assert found["rule"] == PROTOCOLS["circo"].rule
    assert (
        found["benchmark"] == "circo"
        and set(found["benchmarks"]) == {"cirr"}
        and "{shared_concept}" in found["template"]
    )
    tuned, base = found["metrics"]["finetuned"], found["metrics"]["base"]
    assert (
        set(found["metrics"]) == {"base", "finetuned", "promoted"}
        and tuned["composed"]["map_at_5"] > base["composed"]["map_at_5"]
    )
    for model, kinds in found["intervals"].items():
        for kind, bounds in kinds.items():
            for metric, (low, high) in bounds.items():
                assert low - 1e-6 <= found["metrics"][model][kind][metric] <= high + 1e-6
    gap = found["composition_gap"]["finetuned"]
    better = max(tuned["image_only"]["map_at_5"], tuned["text_only"]["map_at_5"])
    assert (
        gap["value"] == pytest.approx(tuned["composed"]["map_at_5"] - better)
        and gap["interval"][0] <= gap["value"] <= gap["interval"][1]
    )
    spread = found["paraphrases"]["finetuned"]
    assert (spread["queries"], spread["wordings"]) == (20, 3) and spread["worst"] < spread["mean"] < spread["best"]
    assert found["paraphrases"]["base"]["spread"] == 0, "a model that ignores the text has no spread"
    assert found["gain"]["promoted"]["value"] == 0 == found["gain"]["promoted"]["interval"][1]
    cirr = found["benchmarks"]["cirr"]
    assert {"recall_at_1", "recall_subset_at_1"} <= set(cirr["metrics"]["finetuned"]["composed"]) and cirr[
        "template"
    ] == "{relative_caption}"
    for model in ("base", "finetuned", "promoted"):
        submitted = json.loads((world / f"run/reports/evaluation/hidden/{model}/circo.json").read_text())
        assert len(submitted) == 20 and all(len(v) == 24 for v in submitted.values())
    assert report.written == 4 and report.figures["finetuned_composed_map_at_5"] == tuned["composed"]["map_at_5"]
    scores = composed_scores(found)
    assert (
        scores["finetuned"]["composed"]["cirr:recall_at_1"] == cirr["metrics"]["finetuned"]["composed"]["recall_at_1"]
    )
    again = json.loads((world / "run/reports/evaluation.json").read_text())
    tasks.evaluate.stage.run(with_benchmarks(world, *ALL), store)
    assert json.loads((world / "run/reports/evaluation.json").read_text()) == again


def test_any_number_of_parts_in_any_order_gives_the_report_of_the_whole(world: Path):
    """Also where a part is killed after some scorings, and where some parts never ran."""
    params, store = with_benchmarks(world, *ALL), Store(world / "run")
    report = store.folder("reports", "evaluation.json")
    whole = tasks.evaluate.stage.run(params, store)
    expected = report.read_bytes()

    @settings(max_examples=4, deadline=None)
    @given(st.integers(2, 7), st.data())
    def check(parts: int, data: st.DataObject) -> None:
        order = data.draw(st.permutations(range(1, parts + 1)))
        started = order[: data.draw(st.integers(0, parts))]
        killed = data.draw(st.sets(st.integers(0, 8)))
        again = sorted(data.draw(st.sets(st.sampled_from(order), max_size=2)))
        report.unlink()
        for i in started:
            tasks.evaluate.stage.run(params, store, part=(i, parts))
        for n, path in enumerate(sorted(store.folder(".run").rglob("*.json"))):
            if n in killed:
                path.unlink()
        for i in again:
            tasks.evaluate.stage.run(params, store, part=(i, parts))
        assert not report.exists(), "parts write no report"
        merged = tasks.evaluate.stage.run(params, store)
        assert report.read_bytes() == expected and merged == whole
        assert not store.folder(".run", "parts", "evaluate").exists()

    check()


def test_parts_share_the_scorings_and_the_last_call_makes_none_again(world: Path, monkeypatch: pytest.MonkeyPatch):
    params, store = with_benchmarks(world, *ALL), Store(world / "run")
    made: list[tuple[str, str]] = []
    retrieve = tasks.evaluate.stage.retrieve

    def recording(retriever: Any, benchmark: Any, batch_size: int) -> Any:
        made.append((str(retriever.weight), benchmark.name))
        return retrieve(retriever, benchmark, batch_size)

    monkeypatch.setattr(tasks.evaluate.stage, "retrieve", recording)
    for i in (1, 2, 3):
        tasks.evaluate.stage.run(params, store, part=(i, 3))
        assert len(made) == 3 * i, "three models on three benchmarks, a model a part"
    tasks.evaluate.stage.run(params, store)
    assert len(made) == 9
    (world / "run/models/candidate/weights").write_text("trained again")
    tasks.evaluate.stage.run(params, store, part=(1, 3))
    assert len(made) == 12, "scorings of other weights are not taken"


def test_training_on_the_benchmarks_images_is_detected(world: Path):
    store = Store(world / "run")
    tasks.evaluate.stage.run(with_benchmarks(world, ALL[0]), store)
    clean = json.loads((world / "run/reports/evaluation.json").read_text())
    assert clean["contamination"]["share"] == 0.0 and clean["contamination"]["images"] > 20
    rows = []
    for n in range(24):  # the training data holds ten of the images, as JPEG
        path = world / "copy.jpg"
        (image(list(COLOURS)[n % 4], n) if n < 10 else image("green", 1000 + n)).save(path, quality=85)
        copy = Image.open(path)
        rows.append(
            {
                "image_id": f"i{n}",
                "batch": BATCH,
                "phash": f"{perceptual_hash(copy):016x}",
                "thumbnail": thumbnail(copy),
            }
        )
    triplet = dict.fromkeys(schemas()["triplets"].names)
    triplets = [
        triplet
        | {
            "triplet_id": f"t{n}",
            "query_image_id": f"i{n}",
            "target_image_id": f"i{n + 1}",
            "instructions": ["x"],
            "negative_image_ids": [],
        }
        for n in range(0, 24, 2)
    ]
    store.write(store.table_path("images", BATCH), rows, "images")
    store.write(store.table_path("triplets", BATCH, 0), triplets, "triplets")
    tasks.evaluate.stage.run(with_benchmarks(world, ALL[0]), store)
    found = json.loads((world / "run/reports/evaluation.json").read_text())
    assert found["contamination"]["copies"] + found["contamination"]["distractor_copies"] == 10
    assert found["contamination"]["share"] > 0.3 and found["metrics"] == clean["metrics"]


def test_the_model_card_has_intervals_costs_and_data_version(world: Path):
    params = with_benchmarks(world, *ALL)
    tasks.evaluate.stage.run(params, Store(world / "run"))
    found = json.loads((world / "run/reports/evaluation.json").read_text())
    cost = {
        "train": {"wall_s": 61.2, "cpu_s": 118.0, "gpus": 2, "gpu_s": 122.4, "energy_j": 7200.0},
        "evaluate": {"wall_s": 5.0, "cpu_s": 5.0, "energy_j": None},
    }
    version = {"fingerprint": "f" * 64, "rows": {"triplets": 1234, "images": 5678}}
    facts = ModelFacts(
        tag="model/2026.01.06",
        data_version="dataset/2026.01.05",
        base_model="base",
        why="better",
        recipe={"recipe": recipe_id(params)},
        noise={"seeds": 3, "margin": 0.0165},
        costs=cost,
        version=version,
    )
    card = model_card(found, facts)
    low, high = found["intervals"]["finetuned"]["composed"]["map_at_5"]
    for text in (
        f"[{low:.4f}, {high:.4f}]",
        "## Scores (cirr)",
        "3 seeds",
        "0.0165",
        "122 GPU seconds on 2",
        "2.00 Wh",
        "energy not measurable here",
        recipe_id(params),
    ):
        assert text in card
    assert (
        "1,234 triplets over 5,678 images" in card
        and "git checkout dataset/2026.01.05 && dvc pull" in card
        and "trained-on:dataset/2026.01.05" in card
    )
    assert "was not measured" in model_card(found, replace(facts, recipe={}, noise=None))


def test_benchmarks_that_cannot_be_scored_are_refused_with_the_next_step(world: Path):
    store = Store(world / "run")
    with pytest.raises(ConfigError, match="hides its answers"):
        tasks.evaluate.stage.run(with_benchmarks(world, ALL[2]), store)
    with pytest.raises(ConfigError, match=r"'promote.metric' is 'map_at_5': benchmark cirr has \['recall_at_1'"):
        tasks.evaluate.stage.run(with_benchmarks(world, ALL[1]), store)
    with pytest.raises(ConfigError, match="names must differ"):
        tasks.evaluate.stage.run(with_benchmarks(world, ALL[0], ALL[0]), store)
