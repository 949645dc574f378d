"""Names and settings that the DAGs share: ids, the pool, the asset, retries, and where a run's worktree lies.

Everything comes from the environment at parse time, so that one image serves a laptop and a cluster:

    MEGAPAIRS_DATASET         the deployment's clone; open_run works there
    MEGAPAIRS_RUNS            folder of the runs' worktrees, shared by all workers
    TASKS_PYTHON              interpreter of the stages (default: the one that Airflow runs on)
    MEGAPAIRS_SCHEDULE        cron or preset of dataset_refresh (default @weekly; empty = only by hand)
    MEGAPAIRS_DEFAULT_PROFILE profile of scheduled runs and the form's preset (default: params.yaml's own)
    MEGAPAIRS_RETRIES, MEGAPAIRS_RETRY_DELAY_S   default 2 and 60 s, doubled per try up to an hour
    MEGAPAIRS_GPU_QUEUE       Celery queue of the GPU stages (default gpu; other executors ignore it)
    MEGAPAIRS_MAIL_TO, MEGAPAIRS_MAIL_FROM       who gets the alert mail; none is sent when MAIL_TO is empty
    MEGAPAIRS_UI              base URL of the web UI, for links in mails
"""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import Asset

from tasks.names import slug

PROJECT = Path(__file__).resolve().parents[2]

DATASET_DAG = "dataset_refresh"
MODEL_DAG = "bge_vl_finetune"
GPU_POOL = "gpu"

# A new version of the triplets. The event's extra holds {"version": "dataset/YYYY.MM.DD[.n]"}.
TRIPLETS = Asset(name="megapairs_triplets", uri="megapairs://dataset/triplets")


def gpu() -> dict[str, str]:
    """Arguments of a stage that wants the GPU: its pool, and its queue where queues exist."""
    return {"pool": GPU_POOL, "queue": os.environ.get("MEGAPAIRS_GPU_QUEUE", "gpu")}


def schedule() -> str | None:
    """When dataset_refresh runs by itself; None = never."""
    return os.environ.get("MEGAPAIRS_SCHEDULE", "@weekly") or None


def run_folder(run_id: str) -> Path:
    """The worktree of a run; it exists from open_run to the run's success."""
    return Path(os.environ.get("MEGAPAIRS_RUNS", "/nonexistent/MEGAPAIRS_RUNS")) / slug(run_id)
