"""A run that died resumes from its last checkpoint and ends with the same weights, curve and metrics."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tasks.config import Params
from tasks.models.retrievers.clip import ClipRetriever
from tasks.store import Store
from tasks.train.accelerator import TrainingRuntime
from tasks.train.checkpoints import PROGRESS_FILE, Checkpoints, Progress
from tasks.train.run_log import RunLog
from tasks.train.stage import run
from tests.support.killing import kill_when
from tests.support.training import checkpoint_folders, held_captions, with_train

pytestmark = pytest.mark.slow


class Stopped(Exception):
    """What ends the run in these tests."""


def read_metrics(store: Store) -> list[dict[str, object]]:
    return [json.loads(line) for line in store.folder("reports", "training", "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("dies_at", "holds_captions"), [(2, False), (4, False), (4, True), (11, False), (11, True)])
def test_a_run_that_died_resumes_with_the_same_weights_and_metrics(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, dies_at: int, holds_captions: bool
):
    if holds_captions:
        held = held_captions(store, held_beside=16, held_spliced=0.5, weight=0.0)
        params = with_train(params, datasets=held, steps=0, warmup_steps=0, locked_steps=12)
    run(params, store)
    weights = store.folder("models", "candidate", "model.safetensors").read_bytes()
    report = store.folder("reports", "training.json").read_bytes()
    metrics = read_metrics(store)
    log_step = RunLog.log_step

    def dying(self: RunLog, step: int, *rest: object, **keywords: object) -> None:
        if step == dies_at:
            raise Stopped
        log_step(self, step, *rest, **keywords)

    monkeypatch.setattr(RunLog, "log_step", dying)
    with pytest.raises(Stopped):
        run(params, store)
    assert bool(checkpoint_folders(store)) == (dies_at > 3)
    monkeypatch.setattr(RunLog, "log_step", log_step)
    run(params, store)
    assert store.folder("models", "candidate", "model.safetensors").read_bytes() == weights
    assert store.folder("reports", "training.json").read_bytes() == report
    resumed = read_metrics(store)
    without_clocks = [
        [(r["key"], r["step"], r["value"]) for r in rows if r["key"] != "steps_per_s"] for rows in (metrics, resumed)
    ]
    assert without_clocks[0] == without_clocks[1]
    assert set(resumed[0]) == {"key", "value", "step", "timestamp"}
    assert not list(store.folder(".run", "train").iterdir())


def test_killed_with_sigkill_and_run_again_gives_the_same_weights(params: Params, store: Store, project: Path):
    params = with_train(params, steps=60, checkpoint_steps=5)
    store.folder("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))
    env = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")} | {"PYTHONPATH": str(project)}
    line = [sys.executable, "-m", "tasks", "train", "--root", str(store.root)]
    kill_when(lambda: bool(checkpoint_folders(store)), line, project, with_children=False, env=env)
    done = json.loads((checkpoint_folders(store)[-1] / PROGRESS_FILE).read_text())["progress"]["step"]
    assert 0 < done < 64 and not store.folder("models", "candidate").exists()
    run(params, store)
    resumed = store.folder("models", "candidate", "model.safetensors").read_bytes()
    run(params, store)  # no checkpoint now: from the start
    assert store.folder("models", "candidate", "model.safetensors").read_bytes() == resumed


def test_a_checkpoint_of_another_training_is_not_used(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    other = Checkpoints(store.folder(".run", "train"), identity="other", every_steps=1)
    runtime = TrainingRuntime(ClipRetriever(params.train.base_model, device="cpu"), params.train)
    runtime.prepare(torch.optim.AdamW(runtime.module.parameters()))
    other.save_if_due(Progress(40, "both", 36, RunLog(50).state()), 50, runtime)
    caplog.set_level("INFO")
    monkeypatch.setattr(Checkpoints, "clear", lambda self: None)
    run(params, store)
    assert "is of another recipe, data or base model" in caplog.text and "resumes from" not in caplog.text
    names = [p.name for p in checkpoint_folders(store)]
    assert names == ["checkpoint-000000009"], "the run's own replaces it, although its step is lower"


def test_a_checkpoint_without_progress_is_not_used(store: Store, caplog: pytest.LogCaptureFixture):
    """Of a version of this program that wrote another file."""
    store.folder(".run", "train", "checkpoint-000000040").mkdir(parents=True)
    caplog.set_level("INFO")
    assert Checkpoints(store.folder(".run", "train"), identity="").progress is None
    assert "is of another recipe, data or base model" in caplog.text
