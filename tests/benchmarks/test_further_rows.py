"""The arms of benchmarks.further_rows: as many steps on triplets, whatever else is trained on."""

from pathlib import Path

from benchmarks.further_rows import ARMS, arm_params, triplet_steps
from tasks.config import parse_params, read_raw, resolve


def test_every_arm_takes_as_many_steps_on_triplets():
    params = parse_params(resolve(read_raw(Path("params.yaml")), "demo", {}))
    assert params.train.datasets
    steps, locked_steps = triplet_steps(params.train)
    assert (steps, locked_steps) == (0, 300), "profile demo has no batches of captions alone, and no main phase"
    for tasks in ARMS.values():
        assert triplet_steps(arm_params(params, tasks, 1.0).train) == (10, locked_steps), tasks
    with_main = arm_params(params, (), 0.5)
    assert triplet_steps(arm_params(with_main, ARMS["all"], 0.5).train) == (with_main.train.steps, locked_steps)
