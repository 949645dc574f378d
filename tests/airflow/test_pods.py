"""Kubernetes: the GPU stages' pods come from the deployment's own manifest; a wrong one is the DAG's import error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFEST = Path("deploy/helm/gpu-pod.yaml").resolve()


def test_gpu_stages_carry_the_pod_and_others_do_not(load_dag: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEGAPAIRS_GPU_POD", str(MANIFEST))
    dags = [load_dag("dataset_refresh"), load_dag("bge_vl_finetune")]
    tasks = {task.task_id.rpartition(".")[2]: task for dag in dags for task in dag.tasks}
    on_gpu = {name for name, task in tasks.items() if task.pool == "gpu"}
    assert {"recaption", "embed", "caption", "judge", "train", "evaluate"} <= on_gpu
    for name, task in tasks.items():
        given = task.partial_kwargs.get("executor_config") if hasattr(task, "partial_kwargs") else task.executor_config
        assert bool(given) == (name in on_gpu), name
        if name in on_gpu:
            container = given["pod_override"].spec.containers[0]
            assert container.resources.limits["nvidia.com/gpu"] == "1" and container.image.endswith(":gpu")


def test_the_pod_is_laid_over_the_workers_template():
    from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
    from megapairs.pods import read_pod

    container = {"name": "base", "image": "megapairs:cpu", "env": [{"name": "MEGAPAIRS_RUNS", "value": "/data/runs"}]}
    template = PodGenerator.deserialize_model_dict({"kind": "Pod", "spec": {"containers": [container]}})
    pod = PodGenerator.reconcile_pods(template, read_pod(MANIFEST))
    (base,) = pod.spec.containers
    assert base.image.endswith(":gpu") and base.resources.limits["nvidia.com/gpu"] == "1"
    assert {e.name: e.value for e in base.env} == {"MEGAPAIRS_RUNS": "/data/runs", "MEGAPAIRS_REQUIRE_GPU": "1"}
    assert [m.mount_path for m in base.volume_mounts] == ["/dev/shm"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file"),
        ("kind: Deployment", "is no Pod manifest"),
        ("- a list", "is no Pod manifest"),
        (
            yaml.safe_dump({"kind": "Pod", "spec": {"containers": [{"name": "stage"}]}}),
            r"containers \['stage'\]; expected",
        ),
        ("kind: Pod", r"containers \[\]; expected one with the name 'base'"),
    ],
)
def test_a_wrong_manifest_is_said(tmp_path: Path, content: str | None, message: str):
    from megapairs.pods import read_pod

    path = tmp_path / "pod.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"MEGAPAIRS_GPU_POD: .*{message}"):
        read_pod(path)


def test_a_dag_with_pods_is_serialized(load_dag: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch):
    from airflow.serialization.serialized_objects import DagSerialization

    monkeypatch.setenv("MEGAPAIRS_GPU_POD", str(MANIFEST))
    assert "nvidia.com/gpu" in str(DagSerialization.to_dict(load_dag("bge_vl_finetune")))
