"""What the story on the twin asks for is a run that opens: its smaller values contradict nothing."""

from pathlib import Path

import pytest
import yaml

from tasks.config import overlay, parse_params, read_raw, training_run_contradictions
from tasks.config.resolve import resolve
from tasks.demo.production_story import SMALLER, check_queues
from tasks.demo.setup import DemoFailed
from tasks.publish.run_conf import changes_from_conf


@pytest.mark.parametrize("profile", sorted(SMALLER))
def test_the_smaller_values_contradict_nothing(profile: str):
    raw = read_raw(Path("params.yaml"))
    _, changes = changes_from_conf({"profile": profile, **SMALLER[profile]}, raw)
    params = parse_params(resolve(raw, profile, changes), where=profile)
    assert training_run_contradictions(params.train, params.evaluate) == []
    assert (
        overlay({}, changes)["train"]["steps"]
        < yaml.safe_load(Path(f"tasks/profiles/{profile}.yaml").read_text())["train"]["steps"]
    )


def test_tasks_on_the_wrong_queue_are_said():
    good = {"task_id": "ingest", "state": "success", "pool": "cpu", "queue": "default"}
    gpu = {"task_id": "embed", "state": "success", "pool": "gpu", "queue": "gpu"}
    assert check_queues([good, gpu, {**gpu, "state": "skipped", "queue": None}]) == {"default": 1, "gpu": 1}
    with pytest.raises(DemoFailed, match="embed: ran on queue 'default'; expected 'gpu'"):
        check_queues([good, {**gpu, "queue": "default"}])
    with pytest.raises(DemoFailed, match="expected some on each"):
        check_queues([good])
