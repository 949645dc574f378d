"""Seed noise: measured once per recipe, published, brought into later runs, and used by promote."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.config import load_params
from tasks.errors import DataError, NothingToDo, TransientError
from tasks.promote import seed_noise
from tasks.promote import stage as promote
from tasks.publish.git import files_at, tags
from tasks.publish.open_run import Deployment, RunRequest, open_run
from tasks.publish.published import REMOTE_BRANCH
from tasks.store import Store
from tasks.train.recipe import recipe_id
from tests.support.fake_run import publish_version


def evaluation_report(tuned: float, base: float = 0.10) -> dict[str, Any]:
    """The report of an evaluation in which the candidate composes at `tuned`."""
    values = {"base": base, "finetuned": tuned}
    metrics = {
        m: {
            "composed": {"map_at_5": v, "recall_at_1": v / 2},
            "image_only": {"map_at_5": 0.01},
            "text_only": {"map_at_5": 0.0},
        }
        for m, v in values.items()
    }
    return {"metrics": metrics, "revisions": {"base": "b" * 12}}


def try_to_promote(clone: Path, runs: Path, run_id: str, score: float) -> tuple[bool, str]:
    """Whether promote would promote a candidate of this score, and its note, in a dry run of its own."""
    root = Path(
        open_run(RunRequest(run_id, "model", {"date": "2026-12-20", "dry_run": True}), Deployment(clone, runs)).notes[0]
    )
    (root / "models" / "candidate").mkdir(parents=True)
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports" / "evaluation.json").write_text(json.dumps(evaluation_report(score)))
    report = promote.run(load_params(root / "params.yaml"), Store(root))
    return "dry run" in report.notes[0], report.notes[0]


@pytest.mark.slow
def test_noise_is_measured_once_and_read_by_promote(deployment: Path, monkeypatch: pytest.MonkeyPatch):
    clone, runs = deployment / "dataset", deployment / "runs"
    publish_version(deployment, "one", "2026-11-16", range(0, 8))
    assert try_to_promote(clone, runs, "before", 0.11)[0], "min_gain, 0.005, alone decides where no noise was measured"

    root = Path(open_run(RunRequest("noise", "model", {"date": "2026-12-19"}), Deployment(clone, runs)).notes[0])
    params, store = load_params(root / "params.yaml"), Store(root)
    calls: list[tuple[str, int]] = []

    def run_stage(stage: str, folder: Path) -> None:
        seed = yaml.safe_load((folder / "params.yaml").read_text())["open_run"]["seed"]
        if (stage, seed) == ("evaluate", 2) and ("evaluate", 2) not in calls:
            calls.append((stage, seed))
            raise TransientError("killed")
        calls.append((stage, seed))
        assert load_params(folder / "params.yaml").train == params.train and list(
            (folder / "data").resolve().glob("triplets/*.parquet")
        )
        (folder / "models").mkdir(exist_ok=True)
        if stage == "evaluate":
            (folder / "reports").mkdir()
            (folder / "reports" / "evaluation.json").write_text(json.dumps(evaluation_report(0.15 + 0.01 * seed)))

    monkeypatch.setattr(seed_noise, "run_stage", run_stage)
    with pytest.raises(TransientError, match="killed"):
        seed_noise.run(params, store)
    assert tags(clone, "noise") == []
    report = seed_noise.run(params, store)
    assert calls == [
        ("train", 0),
        ("evaluate", 0),
        ("train", 1),
        ("evaluate", 1),
        ("train", 2),
        ("evaluate", 2),
        ("train", 2),
        ("evaluate", 2),
    ]
    recipe = recipe_id(params)
    assert (
        report.reused == 2
        and report.figures["map_at_5_deviation"] == pytest.approx(0.01)
        and tags(clone, "noise") == [f"noise/{recipe}"]
    )
    assert f"reports/noise-{recipe}.json.dvc" in files_at(clone, REMOTE_BRANCH)
    with pytest.raises(NothingToDo, match="was measured before"):
        seed_noise.run(params, store)

    # margin: t(0.95, 2) x sqrt(2) x 0.01 = 0.0413
    is_better, why = try_to_promote(clone, runs, "within", 0.14)
    assert not is_better and "more than 0.0413, the noise of 3 seeds" in why
    assert try_to_promote(clone, runs, "beyond", 0.15)[0]
    publish_version(deployment, "two", "2026-12-21", range(8, 13))
    assert f"reports/noise-{recipe}.json.dvc" in files_at(clone, REMOTE_BRANCH), "the next version leaves it in place"


def test_a_seed_that_fails_repeats_its_stages_message(tmp_path: Path):
    params = load_params("params.yaml", "test")
    (tmp_path / "data").mkdir()
    seed_noise.prepare_folder(tmp_path / "seed", Store(tmp_path), params, 7)
    assert (
        load_params(tmp_path / "seed" / "params.yaml").open_run.seed == 7
        and (tmp_path / "seed" / "data").resolve() == tmp_path / "data"
    )
    with pytest.raises(
        DataError, match=r"(?s)`-m tasks evaluate --root .* ended with 65.*run `python -m tasks train` first"
    ):
        seed_noise.run_stage("evaluate", tmp_path / "seed")
