"""The operators of the maintenance DAGs: remove what old runs left, and tell of a run that takes longer than ever.

Both ask Airflow's REST API, with the login of connection MEGAPAIRS_API_CONNECTION: inside a task Airflow's database is
out of reach.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.configuration import conf
from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowSkipException

from megapairs.alerts import Failure, read_dataset_name, receivers
from megapairs.command import stage_command
from megapairs.facts import ApiClient, api_client
from megapairs.mail_message import Mail
from megapairs.stage import Command
from megapairs.wiring import (
    DATASET_DAG,
    MODEL_DAG,
    PROJECT,
    dag_id_for,
    dataset_variables,
    further_datasets,
    run_folder,
)
from tasks.pages.render import html

HISTORY = 10  # successful runs that a run is compared with, a count
LATE_FACTOR = 2.0  # a run is late that takes this many times as long as the longest of them
LATE_LEAST_S = 3600.0  # and longer than this, s
FIRST_LIMIT_S = 7 * 86_400.0  # the limit where there is no history, s
NO_API = "connection megapairs_api is not set or its server does not answer: which runs are active cannot be told"


@dataclass(frozen=True)
class LateRun:
    """A run that takes longer than its history.

    Attributes:
        dag_id, run_id: which.
        elapsed_s, limit_s: for how long it has run, and what was expected, s.
        waiting: its tasks that have not ended, as 'task state (pool, queue)'.
    """

    dag_id: str
    run_id: str
    elapsed_s: float
    limit_s: float
    waiting: tuple[str, ...] = ()


def parse_time(text: str | None) -> datetime.datetime | None:
    """A time of the REST API."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def limit_s(durations_s: Iterable[float]) -> float:
    """How long a run may take, s, after runs that took so long."""
    longest = max(durations_s, default=0.0)
    return max(LATE_LEAST_S, LATE_FACTOR * longest) if longest else FIRST_LIMIT_S


def find_late_runs(runs: Iterable[Mapping[str, Any]], now: datetime.datetime) -> list[LateRun]:
    """The active runs of a DAG that take longer than their history.

    Args:
        runs: of the REST API, newest first: dag_id, dag_run_id, state, queued_at, start_date, end_date.
        now: the time, with a time zone.
    """
    active: list[tuple[Mapping[str, Any], datetime.datetime]] = []
    durations: list[float] = []
    for run in runs:
        start, end = parse_time(run.get("start_date")), parse_time(run.get("end_date"))
        if run["state"] in ("running", "queued"):
            active.append((run, start or parse_time(run.get("queued_at")) or now))
        elif run["state"] == "success" and start and end and len(durations) < HISTORY:
            durations.append((end - start).total_seconds())
    limit = limit_s(durations)
    late = []
    for run, since in active:
        elapsed = (now - since).total_seconds()
        if elapsed > limit:
            late.append(LateRun(str(run["dag_id"]), str(run["dag_run_id"]), elapsed, limit))
    return late


def hours(seconds: float) -> str:
    """Seconds as hours, for a person."""
    return f"{seconds / 3600:.1f} h"


def unfinished_tasks(client: ApiClient, late: LateRun) -> tuple[str, ...]:
    """The run's tasks that wait or work, as 'task state (pool, queue)'."""
    tasks = client.get(f"dags/{late.dag_id}/dagRuns/{late.run_id}/taskInstances", limit=200)["task_instances"]
    states = ("queued", "scheduled", "running", "up_for_retry", "deferred", "restarting")
    found = [t for t in tasks if t.get("state") in states]
    return tuple(f"{t['task_id']} {t['state']} (pool {t.get('pool')}, queue {t.get('queue')})" for t in found)


class LateRuns(BaseOperator):
    """Send a mail, once a run, about each active run that takes longer than its history."""

    def execute(self, context: Context) -> list[str]:
        """Look; returns the ids of the late runs.

        Raises:
            AirflowSkipException: the REST API cannot be asked.
        """
        client = api_client()
        if client is None:
            raise AirflowSkipException(NO_API)
        late = []
        for dag_id in (dag_id_for(dag, name) for name in ("", *further_datasets()) for dag in (DATASET_DAG, MODEL_DAG)):
            runs = client.get(f"dags/{dag_id}/dagRuns", order_by="-run_after", limit=50)["dag_runs"]
            late += find_late_runs(runs, datetime.datetime.now(datetime.UTC))
        for run in late:
            self.log.warning(
                "%s %s has run for %s, expected %s", run.dag_id, run.run_id, hours(run.elapsed_s), hours(run.limit_s)
            )
            self.tell(run, client, context)
        return [run.run_id for run in late]

    def tell(self, late: LateRun, client: ApiClient, context: Context) -> None:
        """Send the mail, unless one was sent about this run."""
        to = receivers()
        folder = run_folder(late.run_id, late.dag_id)
        marker = (folder if folder.is_dir() else folder.parent) / ".run" / "mails" / f"late-{folder.name}"
        if not to or marker.exists():
            return
        waiting = unfinished_tasks(client, late)
        ui = os.environ.get("MEGAPAIRS_UI", "").rstrip("/")
        failure = Failure(
            dataset=read_dataset_name(folder),
            dag_id=late.dag_id,
            run_id=late.run_id,
            task=", ".join(waiting[:3]) or "none",
            error="\n".join(waiting),
            run_url=f"{ui}/dags/{late.dag_id}/runs/{late.run_id}" if ui else "",
        )
        subject = (
            f"[{failure.dataset}] {late.dag_id} has run for {hours(late.elapsed_s)}, expected {hours(late.limit_s)}"
        )
        values = {
            "failure": failure,
            "subject": subject,
            "elapsed": hours(late.elapsed_s),
            "limit": hours(late.limit_s),
        }
        sender = os.environ.get("MEGAPAIRS_MAIL_FROM") or None
        body = html("late_mail.html.j2", **values)
        Mail(to=to, from_email=sender, subject=subject, html_content=body).notify(context)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


class PruneRuns(Command):
    """`python -m tasks runs --prune --yes`, with the runs that Airflow knows as active named."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Remove what nothing needs; returns what was freed.

        Raises:
            AirflowSkipException: the REST API cannot be asked, so that no run's worktree is known to be unneeded.
        """
        client = api_client()
        if client is None:
            raise AirflowSkipException(NO_API)
        freed = {name: self.prune(name, client) for name in ("", *further_datasets())}
        return {**freed.pop(""), **freed}

    def prune(self, dataset: str, client: ApiClient) -> dict[str, Any]:
        """Remove what nothing of one dataset needs."""
        active: list[str] = []
        for dag_id in (dag_id_for(DATASET_DAG, dataset), dag_id_for(MODEL_DAG, dataset)):
            for state in ("running", "queued"):
                runs = client.get(f"dags/{dag_id}/dagRuns", state=state, limit=100)["dag_runs"]
                active += [str(run["dag_run_id"]) for run in runs]
        logs = Path(conf.get("logging", "base_log_folder"))
        more = ["--prune", "--yes", "--json", "--logs", str(logs), *(w for run in active for w in ("--active", run))]
        place = dataset_variables(dag_id_for(DATASET_DAG, dataset))
        return self.run_command(stage_command("runs", more=tuple(more)), PROJECT, place)
