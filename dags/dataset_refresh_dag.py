"""
### dataset_refresh: new images become a new version of the dataset

Every week (or by hand) this DAG takes the new images of its sources, finds related pairs among all images, lets an
MLLM and an LLM write what turns one image into the other, lets a judge and three gates decide what is good enough,
and publishes the result as a git tag with its data in the DVC remote.

| step | what it does | stops the run when |
|---|---|---|
| `open_run` | makes the run's worktree and resolved `params.yaml` | a parameter is unknown or wrong (within seconds) |
| `ingest`, `validate_images` | verifies, turns, shrinks, finds copies; gate | the share of copies or unreadable files
is too high |
| `recaption` | captions for images without one | |
| `embed`, `mine`, `select`, `validate_pairs` | three encoders, neighbours in each window, quotas; gate | images and
captions do not belong together |
| `caption`, `judge`, `validate_triplets` | instructions, P(yes) of target and negatives; gate | instructions are wrong
or too few |
| `version` | commit, push, tag, card; the asset event that starts `bge_vl_finetune` | |
| `close_run` | takes the worktree away | |

**Parameters** (all may be left empty: as in `params.yaml` and the profile)

| name | meaning |
|---|---|
| `profile` | named set of values in `params.yaml`: test, demo, small, production |
| `sources` | list of folders: `[{"name": "shop", "path": "/data/shop", "license_code": "CC0-1.0", "attribution": ""}]`
|
| `limit` | at most so many new images in this run, a count |
| `dry_run` | everything but publishing: no version, no training; default off |
| `date` | the run's one date, `YYYY-MM-DD`; default today |
| `neighbours` | nearest rows looked at per image and encoder (k), a count |
| `window_semantic`, `window_pattern`, `window_caption` | cosine window of a pair per encoder: `{"low": 0.8, "high":
0.96}` |
| `pairs_per_query` | pairs that one image may start, a count |
| `pairs_per_batch` | pairs that one run may add, a count |
| `negatives` | mined hard negatives per pair, beside the query image, a count |
| `instructions_min` | different instructions that a pair must have, a count |
| `judge_threshold` | an instruction is kept when P(yes) of its target is at least this, 0 to 1 |

Windows belong to encoder and source: `python -m tasks calibrate --source FOLDER` proposes a folder's, as values of this
form. Any other value of `params.yaml` may be set through the REST API by its section: `{"caption": {"batch_pairs":
8}}`.

**Idempotence.** A finished file is its own marker and is never changed; running a task again does only what is missing
and gives byte-identical tables. Images that an earlier version holds are known by their bytes and not taken again.
Nothing new (or `dry_run`) skips `version`: a green run, no version, no training.

**Resuming.** Clear the failed task: it goes on in the same worktree where it stopped. Wrong parameters and wrong rows
(`ConfigError`, `DataError`, a gate) are not retried; anything else is, with growing pauses. One run at a time.
A failure for good sends a mail to `MEGAPAIRS_MAIL_TO`; the published version stays as it was.

**GPU.** `recaption`, `embed`, `mine`, `caption` and `judge` take a slot of the pool `gpu` (create it once; its slots
are the stages that may run side by side) and go to the Celery queue `MEGAPAIRS_GPU_QUEUE`. Schedule:
`MEGAPAIRS_SCHEDULE`.
"""

import pendulum
from airflow.sdk import chain, dag, get_current_context, task
from megapairs.defaults import default_args
from megapairs.form import dataset_params
from megapairs.stage import CloseRun, OpenRun, Stage, parts_of
from megapairs.wiring import DATASET_DAG, TRIPLETS, gpu, schedule

from tasks.config import ENCODER_ROLES


@task
def parts(stage: str) -> list[str]:
    """How this run splits a stage: ['1/n', ...], n from its resolved parameters."""
    return parts_of(str(get_current_context()["run_id"]), stage)


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
    """Wiring alone; the work is `python -m tasks <stage>` in the run's worktree."""
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
