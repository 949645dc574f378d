"""The arms of benchmarks.further_rows: as many steps on triplets, whatever else is trained on."""

from pathlib import Path

from benchmarks.further_rows import ARMS, arm_params, triplet_steps
from tasks.config import parse_params, read_raw, resolve


def test_every_arm_takes_as_many_steps_on_triplets():
    params = parse_params(resolve(read_raw(Path("params.yaml")), "demo", {}))
    assert params.train.datasets
    wanted = triplet_steps(params.train)
    assert wanted == (10, 150), "profile demo trains as long on triplets as without captions"
    for tasks in ARMS.values():
        assert triplet_steps(arm_params(params, tasks, 1.0).train) == wanted, tasks
