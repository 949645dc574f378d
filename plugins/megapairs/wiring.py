"""Names and settings that the DAGs share: ids, the pools, the asset, the schedule, and where a run's worktree is.

All settings come from the environment, so that one container image serves a laptop and a cluster. This file reads the
first group; the second group is read where it is used.

| variable | meaning | default |
|---|---|---|
| MEGAPAIRS_SCHEDULE | cron expression or preset of dataset_refresh; empty: only by hand | @weekly |
| MEGAPAIRS_MAINTENANCE_SCHEDULE | the same for maintenance; late_runs is hourly unless it is empty | @weekly |
| MEGAPAIRS_GPU_QUEUE | Celery queue of the GPU stages; other executors ignore it | gpu |
| MEGAPAIRS_GPU_STAGES | stages that take the GPU, separated by commas | recaption,embed,caption,judge,train,evaluate |
| MEGAPAIRS_CODE | folder that holds tasks/ and params.yaml (code_folder.py) | the folder above plugins/ |
| MEGAPAIRS_COMMIT | commit of that folder where it is no checkout (code_folder.py) | the checkout's |
| MEGAPAIRS_GPU_POD | Kubernetes: Pod manifest laid over the pods of the GPU stages (pods.py) | empty: none |
| MEGAPAIRS_RUNS | folder of the runs' worktrees, shared by all workers | none, required |
| MEGAPAIRS_DATASET | the deployment's clone of the dataset repository, for open_run (stage.py) | none, required |
| MEGAPAIRS_DATASETS | further datasets, `name=folder` by commas; each gets a pair of DAGs of its own | empty |
| TASKS_PYTHON | interpreter that runs the stages (command.py) | the one that Airflow runs on |
| MEGAPAIRS_DEFAULT_PROFILE | profile of scheduled runs, and the form's preset (form.py) | as in params.yaml |
| MEGAPAIRS_RETRIES | retries of a failed task, a count (defaults.py) | 2 |
| MEGAPAIRS_RETRY_DELAY_S | pause before the first retry, seconds; it doubles up to an hour (defaults.py) | 60 |
| MEGAPAIRS_MAIL_TO, MEGAPAIRS_MAIL_FROM | receivers and sender of the alert mail; empty: no mail (alerts.py) | empty |
| MEGAPAIRS_DIGEST | set: a weekly mail about what was published (digest.py) | empty |
| MEGAPAIRS_APPROVAL | stages that a person must approve first: version, promote | empty: none |
| MEGAPAIRS_NOTIFIERS | further notifiers beside the mail, such as Slack's, as JSON (news.py) | empty |
| MEGAPAIRS_UI | base URL of the web UI, for links in mails (alerts.py) | empty: no links |
| MEGAPAIRS_PREFLIGHT | off: open_run does not look first whether all is there (stage.py) | on |
| MEGAPAIRS_API_CONNECTION | Airflow connection of the REST API, to read the pools (facts.py) | megapairs_api |
| MEGAPAIRS_STAGE_VARIABLES | names of further variables that stages may see, by commas (environment.py) | empty |
| MEGAPAIRS_AWS_CONNECTION | Airflow connection whose keys ingest gets (aws.py) | aws_default |
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from airflow.sdk import Asset

from megapairs.code_folder import code_folder
from megapairs.pods import executor_config
from tasks.names import slug

PROJECT = code_folder()

DATASET_NAME = r"[A-Za-z0-9][A-Za-z0-9.-]*"
DATASET_DAG = "dataset_refresh"
MODEL_DAG = "bge_vl_finetune"
# Whoever sets Airflow up creates them: tasks/demo, `python -m tasks deploy`, docs/operations.md.
POOLS = ("fetch", "cpu", "gpu")
# Stage -> its pool where it does not take the GPU; all others take Airflow's own pool.
CPU_POOLS = {
    "ingest_fetch": "fetch",
    **dict.fromkeys(("ingest", "recaption", "embed", "mine", "select", "caption", "judge", "train", "evaluate"), "cpu"),
}
GPU_STAGES = "recaption,embed,caption,judge,train,evaluate"  # mine joins them where its backend is torch on a GPU

SEPARATOR = "__"  # between a DAG's name and its dataset's

# A new version of the triplets; its event starts the fine-tuning. The event's extra holds the tag and the values that
# the fine-tuning takes over: {"version": "dataset/YYYY.MM.DD[.n]", "changes": {...}}.
TRIPLETS = Asset(name="megapairs_triplets", uri="megapairs://dataset/triplets")


def further_datasets() -> dict[str, Path]:
    """Datasets beside the one of MEGAPAIRS_DATASET: name -> the folder that `python -m tasks new-dataset` laid out.

    Raises:
        ValueError: MEGAPAIRS_DATASETS is wrong; Airflow shows it as the DAG's import error.
    """
    datasets: dict[str, Path] = {}
    for entry in filter(None, (text.strip() for text in os.environ.get("MEGAPAIRS_DATASETS", "").split(","))):
        name, is_pair, folder = entry.partition("=")
        if not is_pair or not re.fullmatch(DATASET_NAME, name) or not Path(folder).is_absolute():
            raise ValueError(
                f"MEGAPAIRS_DATASETS: {entry!r}; expected name=/absolute/folder, with a name of letters, digits, '.' "
                "and '-'; change it for all Airflow processes"
            )
        datasets[name] = Path(folder)
    return datasets


def dag_id_for(dag_id: str, dataset: str) -> str:
    """Id of a dataset's DAG: the DAG's own name for the dataset of MEGAPAIRS_DATASET, which is '' here."""
    return f"{dag_id}{SEPARATOR}{dataset}" if dataset else dag_id


def dataset_of(dag_id: str) -> str:
    """The further dataset that a DAG belongs to; '' for the one of MEGAPAIRS_DATASET."""
    return dag_id.partition(SEPARATOR)[2]


def dataset_variables(dag_id: str) -> dict[str, str]:
    """The environment variables that lead a command to a DAG's dataset; none for the one of MEGAPAIRS_DATASET.

    Raises:
        ValueError: MEGAPAIRS_DATASETS names no such dataset (any more).
    """
    name = dataset_of(dag_id)
    if not name:
        return {}
    folder = further_datasets().get(name)
    if folder is None:
        raise ValueError(f"{dag_id}: MEGAPAIRS_DATASETS has no {name!r}; known: {sorted(further_datasets())}; add it")
    return {"MEGAPAIRS_DATASET": str(folder / "dataset"), "MEGAPAIRS_RUNS": str(folder / "runs")}


def triplets_of(dataset: str) -> Asset:
    """The asset of a dataset's versions."""
    if not dataset:
        return TRIPLETS
    return Asset(name=f"megapairs_triplets_{dataset}", uri=f"megapairs://{dataset}/triplets")


def gpu_stages() -> set[str]:
    """The stages that take the GPU in this deployment.

    Raises:
        ValueError: MEGAPAIRS_GPU_STAGES names something else; Airflow shows it as the DAG's import error.
    """
    stages = {name.strip() for name in os.environ.get("MEGAPAIRS_GPU_STAGES", GPU_STAGES).split(",")} - {""}
    known = {stage for stage, pool in CPU_POOLS.items() if pool == "cpu"}
    if stages - known:
        raise ValueError(
            f"MEGAPAIRS_GPU_STAGES: {sorted(stages - known)} cannot take the GPU; expected stages of {sorted(known)}, "
            "separated by commas; change it for all Airflow processes"
        )
    return stages


def resources(stage: str) -> dict[str, Any]:
    """Arguments of a stage's task: its pool, its queue where queues exist, its pod where MEGAPAIRS_GPU_POD names one.

    Empty for a stage that needs little.

    Raises:
        ValueError: MEGAPAIRS_GPU_STAGES or MEGAPAIRS_GPU_POD is wrong; Airflow shows it as the DAG's import error.
    """
    if stage in gpu_stages():
        pod = executor_config()
        queue = os.environ.get("MEGAPAIRS_GPU_QUEUE", "gpu")
        return {"pool": "gpu", "queue": queue, **({"executor_config": pod} if pod else {})}
    return {"pool": CPU_POOLS[stage]} if stage in CPU_POOLS else {}


def schedule() -> str | None:
    """When dataset_refresh runs by itself; None: never."""
    return os.environ.get("MEGAPAIRS_SCHEDULE", "@weekly") or None


def starts_unpaused() -> bool | None:
    """Whether a new DAG starts unpaused: where runs are scheduled, nobody should have to press a switch first.

    None, Airflow's own setting, where they are started by hand.
    """
    return False if schedule() else None


def run_folder(run_id: str, dag_id: str = "") -> Path:
    """The worktree of a run; it exists from open_run until close_run removes it."""
    variables = {**os.environ, **dataset_variables(dag_id)}
    return Path(variables.get("MEGAPAIRS_RUNS", "/nonexistent/MEGAPAIRS_RUNS")) / slug(run_id)
