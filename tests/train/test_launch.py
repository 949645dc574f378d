"""Several processes: the step of one process with the same global batch, with and without sharded weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.models.retrievers.clip import ClipRetriever
from tasks.records import StageReport
from tasks.store import Store
from tasks.train.checkpoints import PROGRESS_FILE
from tasks.train.stage import run
from tests.support.training import checkpoint_folders, flat_weights, held_captions, with_train

pytestmark = pytest.mark.slow


def write_params(params: Params, store: Store) -> None:
    """params.yaml as the started processes read it."""
    store.folder("params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json", by_alias=True)))


def read_candidate(store: Store) -> tuple[ClipRetriever, list[dict[str, float]]]:
    """The trained model and its curve."""
    curve = json.loads(store.folder("reports", "training.json").read_text())["curve"]
    return ClipRetriever(str(store.folder("models", "candidate")), device="cpu"), curve


def run_two_processes(params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, project: Path) -> StageReport:
    """Train with two processes."""
    two = with_train(params, processes=2)
    write_params(two, store)
    monkeypatch.setenv("PYTHONPATH", str(project))
    return run(two, store)


def test_two_processes_with_gloo_equal_one_with_the_same_global_batch(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, project: Path
):
    held = held_captions(store)
    params = with_train(params, steps=6, locked_steps=4, batch_triplets=5, datasets=held)
    run(params, store)
    one, curve = read_candidate(store)
    report = run_two_processes(params, store, monkeypatch, project)
    shared, shared_curve = read_candidate(store)
    assert report.done == 10 and report.figures["loss"] == shared_curve[-1]["loss"]
    for a, b in zip(curve, shared_curve, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["drift"] == pytest.approx(a["drift"], abs=1e-4)
    assert curve[-1]["drift"] > 0
    assert torch.allclose(flat_weights(one), flat_weights(shared), atol=1e-4)
    assert not list(store.folder("models").glob(".*"))


def test_two_processes_hold_the_same_spliced_captions_as_one(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, project: Path
):
    """By the drift from the base, which every text of a step changes; the weights are compared above."""
    held = held_captions(store, held_spliced=0.5, weight=0.0)
    params = with_train(params, steps=0, warmup_steps=0, locked_steps=8, datasets=held)
    run(params, store)
    _, curve = read_candidate(store)
    run_two_processes(params, store, monkeypatch, project)
    _, shared_curve = read_candidate(store)
    run(with_train(params, datasets=held_captions(store, weight=0.0)), store)
    _, whole_curve = read_candidate(store)
    drifts = [[point["drift"] for point in c] for c in (curve, shared_curve, whole_curve)]
    assert drifts[1] == pytest.approx(drifts[0], abs=1e-4)
    assert drifts[2] != pytest.approx(drifts[0], abs=1e-4), "captions that are not spliced drift by something else"


# accelerate 1.15 shards on GPUs alone; gloo and FSDP2 can on CPUs
SHARDED = """
import sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
from tasks.config import load_params
from tasks.store import Store
from tasks.train.run_log import RunLog
from tasks.train.stage import run
log_step = RunLog.log_step
def dying(self, step, *rest, **keywords):
    if step == int(sys.argv[2]):
        raise SystemExit(3)
    log_step(self, step, *rest, **keywords)
RunLog.log_step = dying
run(load_params(sys.argv[1] + "/params.yaml"), Store(sys.argv[1]))
"""


def test_sharded_weights_on_two_processes_equal_one_process_and_resume_after_a_death(
    params: Params, store: Store, project: Path, tmp_path: Path
):
    """FSDP2 by gloo: its average, its clipping and its checkpoints, with a batch that does not divide by two and
    gradient caching.
    """
    params = with_train(params, steps=5, locked_steps=4, batch_triplets=5, cache_chunk=3)
    run(params, store)
    one, curve = read_candidate(store)
    write_params(with_train(params, shard_weights=True), store)
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line = [*torchrun, str(script), str(store.root)]
    env = os.environ | {"PYTHONPATH": str(project)}
    died = subprocess.run([*line, "8"], env=env, capture_output=True, text=True, timeout=240)
    assert died.returncode and checkpoint_folders(store), died.stderr[-3000:]
    assert json.loads((checkpoint_folders(store)[-1] / PROGRESS_FILE).read_text())["progress"]["step"] == 6
    done = subprocess.run([*line, "0"], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    shared, shared_curve = read_candidate(store)
    for a, b in zip(curve, shared_curve, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
    shapes = [{k: v.shape for k, v in r.model.state_dict().items()} for r in (one, shared)]
    assert shapes[0] == shapes[1]
    assert torch.allclose(flat_weights(one), flat_weights(shared), atol=2e-4)


def test_the_exit_code_of_a_failed_process_decides_the_error(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, project: Path
):
    two = with_train(params, processes=2, base_model=str(store.folder("nowhere")))
    write_params(two, store)
    monkeypatch.setenv("PYTHONPATH", str(project))
    with pytest.raises(ConfigError, match="ended with exit code 78"):
        run(two, store)
