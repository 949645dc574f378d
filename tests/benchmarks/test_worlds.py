"""The last line of benchmarks.worlds: the worst of every week, never a mean that hides one."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.worlds import main, seeds_of, summary_of, table_lines

RETRIEVAL = {"text_to_image": (-1.5, 0.9), "image_to_text": (0.5, 1.0)}


def world(name: str, score: float, *weeks: dict[str, Any]) -> dict[str, Any]:
    scores = {"all": score, "1": score + 10, "2": score - 5}
    named = {f"2026.01.{4 + 7 * n:02}": {"pairs": 100, "triplets": 50, **week} for n, week in enumerate(weeks)}
    return {
        "name": name,
        "triplets": 100,
        "images": 90,
        "base": {"all": 12.0},
        "finetuned": scores,
        "image_text": {"changes": RETRIEVAL},
        "weeks": named,
    }


def test_a_bad_week_of_one_world_is_what_the_summary_says():
    good = {"true_share": 0.98, "complete_share": 0.96, "yield": 0.6, "shortcut_share": 0.03}
    bad = {**good, "true_share": 0.9, "yield": 0.3, "shortcut_share": 0.08, "false_rejection_share": 0.2}
    worlds = [world("11", 40.0, {**good, "yield": 0.55}, good), world("12", 36.0, good, bad)]
    found = summary_of(worlds)
    assert (found["worlds"], found["map_at_5_mean"], found["map_at_5_min"]) == (2, 38.0, 36.0)
    assert (found["true_share_min_week"], found["shortcut_share_max"]) == (0.9, 0.08)
    assert (found["yield_first_week_min"], found["yield_later_week_min"]) == (0.55, 0.3)
    assert found["false_rejection_share_max"] == 0.2 and found["negatives_also_right_max"] is None
    lines = table_lines(worlds)
    assert lines[1].split() == ["11", "100", "90", "12.0", "40.0", "50.0", "35.0", "nan"]
    assert "yield 30.0%" in lines[-3] and "text to image -1.5 ± 0.9, image to text +0.5 ± 1.0" in lines[-2]
    assert found["image_to_text_recall_at_1_change_mean"] == 0.5
    assert lines[-1].startswith("mAP@5 38.0, standard deviation over 2 worlds 2.8")


def test_a_world_has_seeds_of_its_own_and_the_demos_are_those_of_make_demo():
    assert seeds_of("demo") == {"world": 7, "run": 0, "benchmark": 11}
    seeds = [tuple(seeds_of(name).values()) for name in ("11", "12", "demo")]
    assert all(len(set(column)) == 3 for column in zip(*seeds, strict=True))


@pytest.mark.slow
def test_a_world_runs_and_trains_on_the_captions_of_all_its_weeks(tmp_path: Path):
    captions = {"name": "captions", "format": "rows", "path": "caption_to_image"}
    changes = {"version": {"further_rows": ["caption_to_image"]}, "train": {"datasets": [captions]}}
    summary = main(
        ["--quick", "--first", "60", "--second", "24", "--keep", "--out", str(tmp_path), "--set", json.dumps(changes)]
    )
    world = json.loads((tmp_path / "11.json").read_text())
    assert summary["worlds"] == 1 and summary["map_at_5_mean"] == world["finetuned"]["all"]
    files = (tmp_path / "11" / "run" / "data" / "rows" / "caption_to_image").iterdir()
    assert {path.stem for path in files} == set(world["weeks"]) and len(world["weeks"]) == 2
    assert world["further_rows"]["caption_to_image"] > 60
    found = world["image_text"]
    for name in ("text_to_image", "image_to_text"):
        scores = [found[model][f"{name}_recall_at_1"] for model in ("base", "finetuned")]
        assert 0 < scores[0] <= 100 and found["changes"][name][0] == pytest.approx(scores[1] - scores[0])
