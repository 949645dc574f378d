"""The run log: points of the curve, metrics as JSON lines, the same in TensorBoard."""

import json
from pathlib import Path

import pytest

from tasks.config import Params
from tasks.store import Store
from tasks.train.checkpoints import Progress
from tasks.train.run_log import RunLog
from tasks.train.stage import run
from tests.support.training import with_train


def test_a_point_of_the_curve_is_the_mean_of_ten_steps_and_a_phase_ends_with_one():
    run_log = RunLog(14)
    for step in range(1, 15):
        run_log.log_step(step, {"loss": float(step), "accuracy": 0.5}, is_last=step == 14)
    assert run_log.curve == [{"step": 10, "loss": 5.5, "accuracy": 0.5}, {"step": 14, "loss": 12.5, "accuracy": 0.5}]


def test_metrics_after_the_resumed_step_and_half_a_line_are_dropped(tmp_path: Path):
    lines = [json.dumps({"key": "loss", "value": 0.1 * n, "step": 10 * n, "timestamp": 0}) for n in (1, 2, 3)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(lines) + '\n{"key": "lo')
    state = {"curve": [{"step": 20, "loss": 0.2}], "recent": [{"loss": 1.0}]}
    run_log = RunLog(50, resumed=Progress(21, "both", 21, state), reports=tmp_path)
    assert file.read_text().splitlines() == lines[:2]
    run_log.log_step(22, {"loss": 2.0}, is_last=True)
    assert run_log.curve[-1] == {"step": 22, "loss": 1.5}
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == [
        "loss",
        "loss",
        "loss",
        "steps_per_s",
    ]


def test_tensorboard_holds_the_same_values_as_the_curve(params: Params, store: Store):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(with_train(params, tensorboard=True), store)
    events = EventAccumulator(str(store.folder("reports", "training", "tensorboard"))).Reload()
    curve = json.loads(store.folder("reports", "training.json").read_text())["curve"]
    assert [(e.step, pytest.approx(e.value, abs=1e-4)) for e in events.Scalars("train/loss")] == [
        (p["step"], p["loss"]) for p in curve
    ]
