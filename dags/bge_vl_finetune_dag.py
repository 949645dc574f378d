"""
### bge_vl_finetune: a new version becomes a better model, or nothing

A new version of the triplets starts this DAG by its asset event, which carries the version's tag; a person may start it
for any version. It fine-tunes BGE-VL (CLIP type) with InfoNCE from the base checkpoint, evaluates it beside the base
model and the image-only and text-only baselines, and promotes it only when it beats the model in place.

| step | what it does |
|---|---|
| `open_run` | the run's worktree at that version, with resolved `params.yaml` |
| `train` | in-batch and hard negatives, the query image always among them |
| `evaluate` | each benchmark by its own protocol (CIRCO, CIRR, FashionIQ, GeneCIS, MMEB), or a split of the version
that was never trained on |
| `promote` | a git tag `model/YYYY.MM.DD[.n]` and the model in the DVC remote, only when it is better |
| `close_run` | takes the worktree away |

**Parameters** (all may be left empty: as in `params.yaml` and the profile)

| name | meaning |
|---|---|
| `profile` | named set of values in `params.yaml`: test, demo, small, production |
| `dataset_version` | tag of the version, `dataset/YYYY.MM.DD[.n]`; default: the event's, else the newest |
| `base_model` | Hugging Face name or folder of the checkpoint to start from |
| `steps` | optimiser steps, a count |
| `batch_triplets` | triplets in one step, a count |
| `learning_rate` | peak learning rate |
| `benchmark` | folder in CIRCO's format: `annotations.json` and `images/` |
| `min_gain` | the candidate must beat the model in place by more than this, in the main metric |
| `dry_run` | train and evaluate, promote nothing; default off |
| `date` | the run's one date, `YYYY-MM-DD`; default today |

More than one benchmark: `{"evaluate": {"benchmark": [{"name": "circo", "protocol": "circo", "path": "/data/circo"},
...]}}` in the run's configuration or in `params.yaml`; the first one decides. How much the seed alone moves the scores
is measured once per recipe, by `python -m tasks noise` in the worktree of a model run; without it `min_gain` alone
decides.

**Idempotence.** Clearing a task runs it again in the same worktree; a finished evaluation is reused. The version itself
is only read. **Resuming.** `train` starts again from its last checkpoint where it wrote one. One run at a time.
"""

import pendulum
from airflow.sdk import chain, dag
from megapairs.defaults import default_args
from megapairs.form import model_params
from megapairs.stage import CloseRun, OpenRun, Stage
from megapairs.wiring import MODEL_DAG, TRIPLETS, gpu


@dag(
    dag_id=MODEL_DAG,
    schedule=[TRIPLETS],
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params=model_params(),
    default_args=default_args(),
    doc_md=__doc__,
    tags=["megapairs", "model"],
)
def bge_vl_finetune() -> None:
    """Wiring alone; the work is `python -m tasks <stage>` in the run's worktree."""
    chain(
        OpenRun(kind="model"),
        Stage(task_id="train", stage="train", **gpu()),
        Stage(task_id="evaluate", stage="evaluate", **gpu()),
        Stage(task_id="promote", stage="promote"),
        CloseRun(),
    )


bge_vl_finetune()
