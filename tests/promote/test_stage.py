"""What promote reads: the evaluation, the recipe's noise, the share of images that training has seen."""

import json
from pathlib import Path

import pytest

from tasks.config import overlay, parse_params
from tasks.errors import DataError
from tasks.promote.stage import read_evaluation, read_noise, report_figures, seen_share, shown_recipe
from tests.support.parameters import raw_params


def test_noise_is_read_from_its_table_or_was_not_measured(tmp_path: Path):
    assert read_noise(tmp_path / "none.json") is None
    path = tmp_path / "noise.json"
    metrics = {"map_at_5": {"values": [0.1, 0.2, 0.3], "mean": 0.2, "deviation": 0.1}}
    path.write_text(json.dumps({"seeds": [0, 1, 2], "metrics": metrics}))
    noise = read_noise(path)
    assert noise is not None and (noise.seeds, dict(noise.deviations)) == (3, {"map_at_5": 0.1})
    path.write_text(json.dumps({"seeds": [0], "metrics": metrics}))
    with pytest.raises(DataError, match="expected the scores of at least two seeds"):
        read_noise(path)


def test_an_evaluation_without_the_base_models_scores_is_refused(tmp_path: Path):
    path = tmp_path / "evaluation.json"
    with pytest.raises(DataError, match="run `python -m tasks evaluate` first"):
        read_evaluation(path)
    path.write_text(json.dumps({"metrics": {"finetuned": {"composed": {"map_at_5": 0.2}}}}))
    with pytest.raises(DataError, match=r"metrics.base.composed is missing; found \['finetuned'\]"):
        read_evaluation(path)


def test_the_benchmark_with_the_most_seen_images_counts():
    further = {"a": {"contamination": {"share": 0.2}}, "b": {}}
    assert seen_share({"contamination": {"share": 0.1}, "benchmarks": further}) == 0.2
    assert seen_share({}) == 0.0


def test_figures_hold_the_main_metric_of_each_scored_model():
    metrics = {model: {"composed": {"map_at_5": value}} for model, value in (("base", 0.1), ("finetuned", 0.2))}
    assert report_figures({"metrics": metrics}, "map_at_5", is_promoted=True) == {
        "is_promoted": 1.0,
        "base_map_at_5": 0.1,
        "finetuned_map_at_5": 0.2,
    }


def test_a_card_names_no_path_of_a_machine():
    teacher = {"model": "/srv/models/teacher-9"}
    mixed = {"name": "mixed", "format": "megapairs", "path": "/srv/client-7/mixed.jsonl", "images": "/srv/client-7"}
    raw = raw_params()
    params = parse_params(overlay(raw, {"train": {"teacher": teacher, "datasets": [mixed]}}))
    recipe = shown_recipe(params)
    assert "/srv" not in json.dumps(recipe) and recipe["datasets"] == ["mixed"]
    assert recipe["teacher"]["model"] == "teacher-9" and recipe["steps"] == params.train.steps
