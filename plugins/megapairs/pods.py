"""Kubernetes: the pod of a stage that takes the GPU, from a file that the deployment names.

MEGAPAIRS_GPU_POD is the path of a Pod manifest (deploy/helm/gpu-pod.yaml) whose container `base` holds what differs
from the workers' own template: the GPU resource, the image, volumes, the node's tolerations. Airflow lays it over the
template (`pod_override`). Other executors ignore it; without the variable nothing is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

VARIABLE = "MEGAPAIRS_GPU_POD"


def read_pod(path: Path) -> Any:
    """The manifest as a V1Pod of the Kubernetes client.

    Raises:
        ValueError: no such file, not a Pod, or no container `base`, which Airflow would ignore without a word; Airflow
            shows it as the DAG's import error.
    """
    try:
        from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
    except ImportError as error:
        raise ValueError(
            f"{VARIABLE}: Airflow's provider cncf.kubernetes is not installed; expected it, because "
            "requirements.lock holds it; build the image anew, or unset the variable"
        ) from error
    import yaml

    if not path.is_file():
        raise ValueError(f"{VARIABLE}: no file {path}; expected a Pod manifest, see deploy/helm/gpu-pod.yaml")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("kind") != "Pod":
        raise ValueError(f"{VARIABLE}: {path} is no Pod manifest; expected `kind: Pod`, see deploy/helm/gpu-pod.yaml")
    pod = PodGenerator.deserialize_model_dict(found)
    names = [container.name for container in (pod.spec.containers if pod.spec else None) or []]
    if "base" not in names:
        raise ValueError(
            f"{VARIABLE}: {path}: containers {names}; expected one with the name 'base', which is the stage's; "
            "name it so"
        )
    return pod


def executor_config() -> dict[str, Any]:
    """`executor_config` of a task that takes the GPU; empty where MEGAPAIRS_GPU_POD is not set.

    Raises:
        ValueError: as of `read_pod`.
    """
    path = os.environ.get(VARIABLE, "")
    return {"pod_override": read_pod(Path(path))} if path else {}
