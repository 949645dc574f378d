"""How the dataset's DAG stands, for the home page: what runs, what failed last, when the next run is.

Read from Airflow's database, in the api-server's process. Nothing here raises: without an answer the page goes without.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable
from typing import Any

from megapairs.wiring import DATASET_DAG, dag_id_for

log = logging.getLogger(__name__)


def time_text(moment: datetime.datetime | None) -> str:
    """A time as a person reads it, UTC."""
    return moment.astimezone(datetime.UTC).strftime("%a %d %b %H:%M UTC") if moment else ""


def last_failure(runs: Iterable[Any]) -> Any:
    """The run that failed last, by its end: a scheduled run may be due long before it runs. None where none failed."""
    failed = [run for run in runs if run.state == "failed"]
    return max(failed, key=lambda run: run.end_date or run.start_date or run.run_after, default=None)


def runs_at_a_glance(dataset: str = "") -> list[tuple[str, str]]:
    """(what, value): runs under way, the last failure, the next scheduled run; empty where the database is away."""
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    dag_id = dag_id_for(DATASET_DAG, dataset)
    try:
        from airflow.models.dag import DagModel
        from airflow.models.dagrun import DagRun
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            runs = session.scalars(
                select(DagRun).where(DagRun.dag_id == dag_id).order_by(DagRun.run_after.desc()).limit(50)
            ).all()
            model: Any = session.get(DagModel, dag_id)
            active = [run for run in runs if run.state in ("running", "queued")]
            failed, stopped_at = last_failure(runs), None
            if failed is not None:
                ended = select(TaskInstance.task_id).where(
                    TaskInstance.dag_id == dag_id, TaskInstance.run_id == failed.run_id, TaskInstance.state == "failed"
                )
                stopped_at = session.scalars(ended.order_by(TaskInstance.end_date.desc()).limit(1)).first()
            upcoming = getattr(model, "next_dagrun_create_after", None) if model else None
            shown = [("runs under way", str(len(active)))]
            what = f"last failed run, at {stopped_at}" if stopped_at else "last failed run"
            shown.append((what, time_text(failed.end_date or failed.run_after) if failed else "none"))
            if model is not None and model.is_paused:
                shown.append((f"next run: {dag_id} is paused", "–"))
            else:
                shown.append(("next run", time_text(upcoming) or "by hand"))
            return shown
    except (SQLAlchemyError, RuntimeError, AttributeError, ImportError) as error:
        log.warning("the database does not tell how %s stands (%s)", dag_id, type(error).__name__)
        return []
