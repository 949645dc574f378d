"""The corpus and the benchmark: splits, determinism, copies and damage, ground truths against brute force."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tasks.sample.benchmark import MIN_RELATIVES, make_benchmark, needs_text
from tasks.sample.scenes import Scene, SceneObject, assign_split, difference
from tasks.sample.truth import is_complete
from tasks.sample.world import make_world, poison_captions, poison_copies

pytestmark = pytest.mark.slow


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def facts(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_same_seed_writes_the_same_bytes_and_batches_share_no_file(tmp_path: Path):
    for name in ("a", "b"):
        make_world(tmp_path / name, seed=3, images=150)
        make_world(tmp_path / name, seed=3, images=40, offset=150)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "a.truth.jsonl").read_bytes() == (tmp_path / "b.truth.jsonl").read_bytes()
    assert len(contents(tmp_path / "a")) == 150 + 40 + 1


def test_a_world_contains_copies_and_damaged_files_and_the_truth_is_outside(tmp_path: Path):
    counts = make_world(tmp_path / "w", seed=5, images=400, truth=tmp_path / "truth" / "t.jsonl")
    assert set(counts) == {"original", "exact_copy", "near_copy", "corrupt", "truncated", "too_small"}
    rows = list(csv.DictReader((tmp_path / "w" / "captions.csv").open()))
    assert list(rows[0]) == ["path", "caption", "licence", "source"]
    known = {fact["path"]: fact for fact in facts(tmp_path / "truth" / "t.jsonl")}
    assert {path.name for path in (tmp_path / "w").iterdir()} == {*known, "captions.csv"}
    assert {assign_split(Scene.from_record(fact["scene"])) for fact in known.values() if fact["scene"]} == {"corpus"}
    assert sum(fact["is_caption_wrong"] for fact in known.values()) == round(0.01 * counts["original"])
    for fact in known.values():
        if fact["kind"] == "exact_copy":
            assert (tmp_path / "w" / fact["path"]).read_bytes() == (tmp_path / "w" / fact["copy_of"]).read_bytes()
        if fact["kind"] in ("corrupt", "truncated"):
            with pytest.raises(Exception):  # noqa: B017  Pillow raises several kinds
                Image.open(tmp_path / "w" / fact["path"]).load()


def test_the_truth_may_not_lie_inside_the_folder(tmp_path: Path):
    with pytest.raises(ValueError, match="inside"):
        make_world(tmp_path / "w", seed=5, images=10, truth=tmp_path / "w" / "truth.jsonl")


def test_a_later_batch_has_new_scenes_some_of_old_families(tmp_path: Path):
    make_world(tmp_path / "w", seed=3, images=300)
    old = [Scene.from_record(f["scene"]) for f in facts(tmp_path / "w.truth.jsonl") if f["kind"] == "original"]
    make_world(tmp_path / "w", seed=3, images=60, offset=300)
    new = [Scene.from_record(f["scene"]) for f in facts(tmp_path / "w.truth.jsonl")[300:] if f["kind"] == "original"]
    assert not set(old) & set(new)
    assert sum(any(len(difference(a, b)) <= 3 for a in old) for b in new) >= 5


def test_poisoned_batches_contain_only_what_their_gate_must_stop(tmp_path: Path):
    make_world(tmp_path / "w", seed=3, images=100)
    assert sum(poison_copies(tmp_path / "w", seed=1, images=50).values()) == 50
    assert Counter(f["kind"] for f in facts(tmp_path / "w.truth.jsonl")[100:]).keys() == {"exact_copy", "near_copy"}
    poison_captions(tmp_path / "w", seed=1, images=30, offset=150)
    assert all(f["is_caption_wrong"] for f in facts(tmp_path / "w.truth.jsonl")[150:])


def test_benchmark_ground_truths_are_what_brute_force_finds(tmp_path: Path):
    counts = make_benchmark(tmp_path / "b", seed=2, queries=60, gallery=200, truth=tmp_path / "truth.jsonl")
    scenes = {fact["id"]: Scene.from_record(fact["scene"]) for fact in facts(tmp_path / "truth.jsonl")}
    assert counts["gallery"] == len(scenes) >= 200
    assert {assign_split(scene) for scene in scenes.values()} == {"benchmark"}
    assert {int(path.stem) for path in (tmp_path / "b" / "images").iterdir()} == set(scenes)
    annotations = json.loads((tmp_path / "b" / "annotations.json").read_text())
    assert len(annotations) == 60
    for row in annotations:
        query, target = scenes[row["reference_img_id"]], scenes[row["target_img_id"]]
        assert row["target_img_id"] in row["gt_img_ids"]
        assert is_complete(row["relative_caption"], query, target)
        wanted = set(difference(query, target))
        assert set(row["gt_img_ids"]) == {n for n, scene in scenes.items() if set(difference(query, scene)) == wanted}
    assert any(len(row["gt_img_ids"]) > 1 for row in annotations)


def test_every_query_needs_its_text(tmp_path: Path):
    make_benchmark(tmp_path / "b", seed=4, queries=40, gallery=150, truth=tmp_path / "truth.jsonl")
    scenes = {fact["id"]: Scene.from_record(fact["scene"]) for fact in facts(tmp_path / "truth.jsonl")}
    for row in json.loads((tmp_path / "b" / "annotations.json").read_text()):
        query, target = scenes[row["reference_img_id"]], scenes[row["target_img_id"]]
        others = set(scenes.values()) - {query, target}
        assert sum(len(difference(query, other)) <= len(difference(query, target)) for other in others) >= MIN_RELATIVES


def test_a_target_with_few_near_relatives_does_not_need_its_text():
    def circle(colour: str, background: str = "white") -> Scene:
        return Scene(background, (SceneObject(0, "circle", colour, "large"),))

    family = [circle(c) for c in ("red", "blue", "green", "yellow")]
    far = circle("purple", "teal")
    assert not needs_text(family[0], family[1], family[:3])
    assert not needs_text(family[0], family[1], family)
    assert needs_text(family[0], family[1], [*family, circle("orange")])
    assert needs_text(family[0], far, [*family, far])
