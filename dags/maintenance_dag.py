"""
### maintenance and late_runs: what keeps a deployment going

`maintenance` removes once a week what old runs left behind and nothing needs: worktrees of failed runs, objects of the
DVC cache, kept replies of models, log files. It is `python -m tasks runs --prune --yes`, with the runs that are active
named, so that none of them is touched.

`late_runs` looks every hour whether a run takes more than twice as long as the longest of its last ten successful runs
(a week where there is none), and sends one mail about it, with the tasks that wait and the pools and queues that they
wait for.

`weekly_digest` is there where `MEGAPAIRS_DIGEST` is set: one mail a week about the versions and models of seven days.

The first two need the connection `megapairs_api` (a login of the REST API); without it they are skipped. **Schedule.**
The variable `MEGAPAIRS_MAINTENANCE_SCHEDULE`, default `@weekly`; empty: none runs by itself.
"""

import os

import pendulum
from airflow.sdk import dag
from megapairs.defaults import default_args
from megapairs.digest import Digest
from megapairs.maintenance import LateRuns, PruneRuns

SCHEDULE = os.environ.get("MEGAPAIRS_MAINTENANCE_SCHEDULE", "@weekly") or None
COMMON = {
    "start_date": pendulum.datetime(2026, 1, 1, tz="UTC"),
    "catchup": False,
    "is_paused_upon_creation": False if SCHEDULE else None,
    "max_active_runs": 1,
    "default_args": default_args(),
    "doc_md": __doc__,
    "tags": ["megapairs"],
}


@dag(dag_id="maintenance", schedule=SCHEDULE, **COMMON)
def maintenance() -> None:
    """Remove what old runs left behind."""
    PruneRuns(task_id="prune_runs")


@dag(dag_id="weekly_digest", schedule=SCHEDULE, **COMMON)
def weekly_digest() -> None:
    """Tell once a week what was published."""
    Digest(task_id="digest")


@dag(dag_id="late_runs", schedule="@hourly" if SCHEDULE else None, **COMMON)
def late_runs() -> None:
    """Tell of runs that take longer than their history."""
    LateRuns(task_id="late_runs")


maintenance()
late_runs()
if os.environ.get("MEGAPAIRS_DIGEST"):
    weekly_digest()
