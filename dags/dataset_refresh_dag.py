"""
### dataset_refresh: new images become a new version of the dataset

Every week, or when a person starts it, this DAG ingests the new images of its sources, mines pairs of related images
among all images, lets models describe each pair and write instructions that turn one image into the other, and checks
the result with a judge model and three gates. It publishes what passes as a git tag, with its data in the DVC remote.

| step | what it does |
|---|---|
| `open_run` | makes the run's worktree and its resolved `params.yaml`; a wrong parameter fails here, within seconds |
| `ingest` | downloads or reads, verifies, normalises and deduplicates the new images |
| `validate_images` | gate: stops the run when too many images are copies or unreadable |
| `recaption` | writes captions for the images without one |
| `embed`, `mine` | one task per encoder: embeddings, then the neighbours inside the encoder's window |
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
| `limit` | most new images that this run ingests, a count |
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

**Idempotence.** A finished file marks its work as done and is never changed. Running a task again does only the work
that is missing, and gives byte-identical tables. Images that an earlier version holds are recognised by their bytes and
not ingested again. With nothing new, or with `dry_run`, `version` is skipped: the run is green, without a version and
without a training.

**Resuming.** Clear the failed task: it continues in the same worktree. Wrong parameters and wrong rows (`ConfigError`,
`DataError`, a gate) are not retried; anything else is, with growing pauses. Only one run is active at a time. The last
failure sends a mail to `MEGAPAIRS_MAIL_TO`; the published version stays as it was.

**GPU.** `recaption`, `embed`, `mine`, `caption` and `judge` take a slot of the pool `gpu` (create it once; its slots
are the tasks that may run side by side) and go to the Celery queue `MEGAPAIRS_GPU_QUEUE`. **Schedule.** The variable
`MEGAPAIRS_SCHEDULE`, a cron expression or preset; empty: only by hand.
"""

import pendulum
from airflow.sdk import chain, dag, get_current_context, task
from megapairs.defaults import default_args
from megapairs.form import dataset_params
from megapairs.stage import CloseRun, OpenRun, Stage, list_parts
from megapairs.wiring import DATASET_DAG, TRIPLETS, gpu, schedule

from tasks.config import ENCODER_ROLES


@task
def parts(stage: str) -> list[str]:
    """The parts of a stage in this run: ['1/n', ...], n from its resolved parameters."""
    return list_parts(str(get_current_context()["run_id"]), stage)


@dag(
    dag_id=DATASET_DAG,
    schedule=schedule(),
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params=dataset_params(),
    default_args=default_args(),
    doc_md=__doc__,
    tags=["megapairs", "dataset"],
)
def dataset_refresh() -> None:
    """Only wiring: each task runs `python -m tasks <stage>` in the run's worktree."""
    opened = OpenRun(kind="dataset")
    caption_parts = parts.override(task_id="caption_parts")("caption")
    judge_parts = parts.override(task_id="judge_parts")("judge")
    caption = Stage.partial(task_id="caption", stage="caption", **gpu()).expand(part=caption_parts)
    judge = Stage.partial(task_id="judge", stage="judge", **gpu()).expand(part=judge_parts)
    opened >> [caption_parts, judge_parts]
    chain(
        opened,
        Stage(task_id="ingest", stage="ingest"),
        Stage(task_id="validate_images", stage="validate", item="images"),
        Stage(task_id="recaption", stage="recaption", **gpu()),
        Stage.partial(task_id="embed", stage="embed", **gpu()).expand(item=list(ENCODER_ROLES)),
        Stage.partial(task_id="mine", stage="mine", **gpu()).expand(item=list(ENCODER_ROLES)),
        Stage(task_id="select", stage="select"),
        Stage(task_id="validate_pairs", stage="validate", item="pairs"),
        caption,
        judge,
        Stage(task_id="validate_triplets", stage="validate", item="triplets"),
        Stage(task_id="version", stage="version", outlets=[TRIPLETS]),
        CloseRun(),
    )


dataset_refresh()
