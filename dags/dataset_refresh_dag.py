"""
### dataset_refresh: new images become a new version of the dataset

Every week, or when a person starts it, this DAG ingests the new images of its sources, mines pairs of related images
among all images, lets models describe each pair and write instructions that turn one image into the other, and checks
the result with a judge model and three gates. It publishes what passes as a git tag, with its data in the DVC remote.

| step | what it does |
|---|---|
| `open_run` | makes the run's worktree and its resolved `params.yaml`; a wrong parameter fails here, within seconds |
| `ingest_list` | lists what the sources have that is new |
| `ingest_fetch` | downloads and decodes a part of a large run; skipped where the run is one part |
| `ingest` | downloads or reads, verifies, normalises and deduplicates the new images, or merges the parts |
| `validate_images` | gate: stops the run when too many images are copies or unreadable |
| `recaption` | writes captions for the images without one |
| `embed` | one task per encoder and part: embeddings |
| `mine_part` | searches neighbours in a part of a large run; skipped where the run is one part |
| `mine` | one task per encoder: the neighbours inside the encoder's window, searched or merged from the parts |
| `select` | chooses pairs and hard negatives within quotas |
| `validate_pairs` | gate: stops the run when images and captions do not belong together |
| `caption` | describes each pair and writes its instructions |
| `judge` | asks the judge model whether the target and the negatives fit the instructions |
| `validate_triplets` | gate: stops the run when too few instructions are right |
| `version` | commits, tags and pushes the version with its card; its asset event starts `bge_vl_finetune` |
| `close_run` | removes the worktree |

**Parameters.** All may be left empty: then `params.yaml` and the profile decide.

| name | meaning |
|---|---|
| `profile` | named set of values in `tasks/profiles`: test, demo, small, production |
| `sources` | list of folders, see below |
| `dataset` | name of the dataset; the deployment's own, or nothing: another name is refused |
| `caption_share_min` | images gate: smallest share of new images that have a caption, 0 to 1 |
| `limit` | most new images that this run ingests, a count |
| `takedown` | entries of a takedown list, one a line: no source is read; what they name is withdrawn and published |
| `renew` | rows of earlier models and prompts that this run makes anew, see below; default none |
| `dry_run` | do everything but publish: no version, no training; default off |
| `date` | the date of the run, `YYYY-MM-DD`; default today |
| `neighbours` | nearest images searched per image and encoder (top k), a count |
| `window_semantic`, `window_pattern`, `window_caption` | cosine window of a pair per encoder, see below |
| `pairs_per_query` | most pairs that one image may start, a count |
| `pairs_per_batch` | most pairs that one run may add, a count |
| `negatives` | mined hard negatives per pair, beside the query image, a count |
| `instructions_min` | different instructions that a pair must have, a count |
| `judge_threshold` | lowest probability of its target that an instruction needs, 0 to 1 |

`sources` looks like `[{"name": "shop", "path": "/data/shop", "license_code": "CC0-1.0", "attribution": ""}]`, a window
like `{"low": 0.8, "high": 0.96}`. A window belongs to an encoder and a source: `python -m tasks calibrate --source
FOLDER` proposes the windows of a folder, as values of this form. The REST API may set any other value of `params.yaml`
by its section: `{"caption": {"batch_pairs": 8}}`.

`renew` looks like `{"caption": {"where": "made_before=2026-11-01", "budget": 2000}}`: of the pairs that another
captioner, writer or prompt set described before that day, the 2,000 oldest are described and judged again. Stages are
`recaption`, `caption` and `judge`; conditions are separated by commas (`made_before`, `made_after`, `batch`, `model`,
`revision`, `prompt`); without `where` all stale rows count, without `budget` all are renewed.

**Idempotence.** A finished file marks its work as done and is never changed. Running a task again does only the work
that is missing, and gives byte-identical tables. Images that an earlier version holds are recognised by their bytes and
not ingested again. With nothing new, or with `dry_run`, `version` is skipped: the run is green, without a version and
without a training.

**Resuming.** Clear the failed task: it continues in the same worktree. Wrong parameters and wrong rows (`ConfigError`,
`DataError`, a gate) are not retried; anything else is, with growing pauses. Only one run is active at a time. The last
failure sends a mail to `MEGAPAIRS_MAIL_TO`; the published version stays as it was.

**Parts.** A large run is divided: each heavy stage is mapped over parts of the rows at hand (`ingest.part_files`,
`recaption.part_images`, `embed.part_images`, `mine.part_images`, `caption.part_pairs`). The tables are the same for any
number of parts. A part is judged as soon as it is captioned.

**Pools.** `recaption`, `embed`, `caption` and `judge` (`MEGAPAIRS_GPU_STAGES`) take a slot of the pool `gpu` and go to
the Celery queue `MEGAPAIRS_GPU_QUEUE`; `ingest_fetch` takes one of the pool `fetch`; `ingest`,
`mine` and `select` take one of the pool `cpu`. Create the pools once;
their slots are the tasks that may run side by side. **Schedule.** The variable
`MEGAPAIRS_SCHEDULE`, a cron expression or preset; empty: only by hand. A scheduled DAG is not paused when it appears;
this page says when its next run is.

**Datasets.** A dataset is a deployment of its own: versions, parameters, schedule. Each has a pair of DAGs, so that
their runs neither wait for each other nor share a history: this one for the dataset of `MEGAPAIRS_DATASET`,
`dataset_refresh__NAME` for each one of `MEGAPAIRS_DATASETS`. `python -m tasks new_dataset NAME --source FOLDER` lays
one out.

**People.** `MEGAPAIRS_APPROVAL=version` asks a person first (Browse, Required Actions), unless nothing would be
published; a mail says that it waits. A run that was marked failed, and of which only the failed tasks are cleared, ends
red at `close_run`: clear the first skipped task with its downstream tasks.
"""

from typing import Any

import pendulum
from airflow.sdk import DAG, TaskGroup, chain, get_current_context, task, task_group
from megapairs.approval import approval_before
from megapairs.defaults import default_args
from megapairs.form import dataset_params
from megapairs.news import news_mails
from megapairs.stage import LABEL, CloseRun, OpenRun, Stage, parts_from
from megapairs.wiring import (
    DATASET_DAG,
    dag_id_for,
    further_datasets,
    resources,
    schedule,
    starts_unpaused,
    triplets_of,
)

from tasks.config import ENCODER_ROLES

ENCODERS = list(ENCODER_ROLES)
MERGES = "none_failed_min_one_success"  # runs also where its parts are skipped, because the work is one part


@task
def mine_parts() -> list[str]:
    """The parts of stage mine, which the gate of the images counted."""
    return parts_from(get_current_context()["ti"].xcom_pull(task_ids="validate_images", key="report"), "mine")


@task_group(prefix_group_id=False)
def triplets(part: str) -> None:
    """A part of the pairs becomes triplets: its judge starts once its captions are there, whatever the others do."""
    caption = Stage(task_id="caption", stage="caption", part=part, **resources("caption"))
    caption >> Stage(task_id="judge", stage="judge", part=part, **resources("judge"))


def wire(dataset: str) -> None:
    """Only wiring: each task runs `python -m tasks <stage>` in the run's worktree."""
    opened = OpenRun(kind="dataset", dataset=dataset)
    with TaskGroup("images", prefix_group_id=False):
        listed = Stage(task_id="ingest_list", stage="ingest_list", then="ingest_fetch")
        fetch = Stage.partial(
            map_index_template=LABEL, task_id="ingest_fetch", stage="ingest_fetch", **resources("ingest_fetch")
        ).expand(part=listed.output)
        ingest = Stage(task_id="ingest", stage="ingest", then="recaption", trigger_rule=MERGES, **resources("ingest"))
        images = Stage(task_id="validate_images", stage="validate", item="images", then="embed")
        recaption = Stage.partial(
            map_index_template=LABEL, task_id="recaption", stage="recaption", **resources("recaption")
        ).expand(part=ingest.output)
    with TaskGroup("pairs", prefix_group_id=False):
        embedded = Stage.partial(map_index_template=LABEL, task_id="embed", stage="embed", **resources("embed")).expand(
            item=ENCODERS, part=images.output
        )
        to_mine = mine_parts()
        mine_part = Stage.partial(
            map_index_template=LABEL, task_id="mine_part", stage="mine", **resources("mine")
        ).expand(item=ENCODERS, part=to_mine)
        mined = Stage.partial(
            map_index_template=LABEL, task_id="mine", stage="mine", trigger_rule=MERGES, **resources("mine")
        ).expand(item=ENCODERS)
        select = Stage(task_id="select", stage="select", **resources("select"))
        pairs = Stage(task_id="validate_pairs", stage="validate", item="pairs", then="caption")
    with TaskGroup("instructions", prefix_group_id=False):
        made = triplets.expand(part=pairs.output)
        checked = Stage(task_id="validate_triplets", stage="validate", item="triplets")
    news: dict[str, Any] = {"on_skipped_callback": news_mails(), "on_success_callback": news_mails()}
    with TaskGroup("publish", prefix_group_id=False):
        approval = approval_before("version", "Publish this run's triplets as a version?")
        version = Stage(task_id="version", stage="version", outlets=[triplets_of(dataset)], **news)
        closed = CloseRun()

    chain(opened, listed, fetch, ingest, images, recaption, embedded, mine_part, mined, select, pairs, made, checked)
    chain(checked, *approval, version, closed)
    listed >> ingest
    images >> to_mine
    embedded >> mined


def dataset_refresh(dataset: str = "") -> DAG:
    """The DAG of a dataset.

    Args:
        dataset: of MEGAPAIRS_DATASETS; '' for the one of MEGAPAIRS_DATASET.
    """
    with DAG(
        dag_id=dag_id_for(DATASET_DAG, dataset),
        schedule=schedule(),
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        catchup=False,
        is_paused_upon_creation=starts_unpaused(),
        max_active_runs=1,
        params=dataset_params(dataset),
        default_args=default_args(),
        doc_md=__doc__,
        tags=["megapairs", "dataset", *([dataset] if dataset else [])],
    ) as made:
        wire(dataset)
    return made


for name in ("", *further_datasets()):
    dataset_refresh(name)
