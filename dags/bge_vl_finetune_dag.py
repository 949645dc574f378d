"""
### bge_vl_finetune: a new version of the dataset becomes a better model, or nothing

A new version of the triplets starts this DAG by its asset event, which carries the version's tag. A person may start
it for any version. It fine-tunes BGE-VL (CLIP type) with the InfoNCE loss from the base checkpoint, evaluates it
beside the base model and the image-only and text-only baselines, and promotes it only when it beats the model that is
published.

| step | what it does |
|---|---|
| `open_run` | makes the run's worktree at that version, with its resolved `params.yaml` |
| `train` | fine-tunes with in-batch and hard negatives; the query image is always among the negatives |
| `evaluate` | scores each benchmark by its own protocol, or a split of the version that was never trained on |
| `evaluate_part` | scores a part of many models and benchmarks; `evaluate` merges the parts and writes the report |
| `promote` | publishes a git tag `model/YYYY.MM.DD[.n]`, with the model in the DVC remote, only when it is better |
| `close_run` | removes the worktree |

Benchmark protocols: CIRCO, CIRR, FashionIQ, GeneCIS, MMEB, PinPoint, i-CIR, DTIN.

**Parameters.** All may be left empty: then `params.yaml` and the profile decide.

| name | meaning |
|---|---|
| `profile` | named set of values in `tasks/profiles`: test, demo, small, production |
| `dataset_version` | tag of the version, `dataset/YYYY.MM.DD[.n]`; default: the newest when the run opens |
| `base_model` | Hugging Face name or folder of the checkpoint to start from |
| `steps` | optimiser steps, a count |
| `batch_triplets` | triplets in one step, a count |
| `learning_rate` | peak learning rate |
| `benchmark` | folder in CIRCO's format: `annotations.json` and `images/` |
| `min_gain` | the candidate must beat the published model by more than this, in the main metric |
| `dry_run` | train and evaluate, promote nothing; default off |
| `date` | the date of the run, `YYYY-MM-DD`; default today |

Several benchmarks are set in the run's configuration or in `params.yaml`, and the first one decides: `{"evaluate":
{"benchmark": [{"name": "circo", "protocol": "circo", "path": "/data/circo"}, ...]}}`. The seed alone moves the scores,
too: `python -m tasks noise`, in the worktree of a model run, measures by how much, once per recipe. Without this
measurement `min_gain` alone decides.

**Idempotence.** Clearing a task runs it again in the same worktree; a finished evaluation is reused. The version itself
is only read. **Resuming.** `train` continues from its last checkpoint, where it wrote one. Only one run is active at a
time.
"""

import pendulum
from airflow.sdk import DAG, chain
from megapairs.approval import approval_before
from megapairs.defaults import default_args
from megapairs.form import model_params
from megapairs.news import news_mails
from megapairs.stage import LABEL, CloseRun, OpenRun, Stage
from megapairs.wiring import (
    MODEL_DAG,
    dag_id_for,
    further_datasets,
    resources,
    starts_unpaused,
    triplets_of,
)


def wire(dataset: str) -> None:
    """Only wiring: each task runs `python -m tasks <stage>` in the run's worktree."""
    train = Stage(task_id="train", stage="train", then="evaluate", **resources("train"))
    evaluate_part = Stage.partial(
        map_index_template=LABEL, task_id="evaluate_part", stage="evaluate", **resources("evaluate")
    )
    # also where its parts are skipped, because the work is one part
    evaluate = Stage(
        task_id="evaluate", stage="evaluate", trigger_rule="none_failed_min_one_success", **resources("evaluate")
    )
    chain(
        OpenRun(kind="model", dataset=dataset),
        train,
        evaluate_part.expand(part=train.output),
        evaluate,
        *approval_before("promote", "Promote the fine-tuned model if it is better?"),
        Stage(task_id="promote", stage="promote", on_success_callback=news_mails()),
        CloseRun(),
    )
    train >> evaluate


def bge_vl_finetune(dataset: str = "") -> DAG:
    """The DAG of a dataset.

    Args:
        dataset: of MEGAPAIRS_DATASETS; '' for the one of MEGAPAIRS_DATASET.
    """
    with DAG(
        dag_id=dag_id_for(MODEL_DAG, dataset),
        schedule=[triplets_of(dataset)],
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        is_paused_upon_creation=starts_unpaused(),
        max_active_runs=1,
        params=model_params(dataset),
        default_args=default_args(),
        doc_md=__doc__,
        tags=["megapairs", "model", *([dataset] if dataset else [])],
    ) as made:
        wire(dataset)
    return made


for name in ("", *further_datasets()):
    bge_vl_finetune(name)
