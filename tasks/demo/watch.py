"""Follow the demo's Airflow runs: one line for every task that ends, and the last log lines of one that failed."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.demo.local_airflow import LocalAirflow
from tasks.demo.setup import DemoFailed
from tasks.demo.summary import PARTS_ALONE, PLUMBING, TaskRun, task_line
from tasks.names import slug

DATASET_DAG, MODEL_DAG = "dataset_refresh", "bge_vl_finetune"
LOG_LINES = 40  # of a failing task, printed at the end


class Clock:
    """Prints lines with the time since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def seconds(self) -> float:
        """Wall time since the start, s."""
        return time.monotonic() - self.start

    def print(self, text: str) -> None:
        """Print one line."""
        minutes, seconds = divmod(int(self.seconds()), 60)
        print(f"{minutes:3d}:{seconds:02d}  {text}", flush=True)


def task_label(task: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What a mapped task was mapped to: the report's own part, else Airflow's label; empty for other tasks."""
    if task["map_index"] < 0 or (report and not report.get("part")):
        return ""  # also the one part of a stage that is not divided
    return str(report.get("part") or task.get("rendered_map_index") or task["map_index"])


def read_task_run(airflow: LocalAirflow, dag_id: str, run_id: str, task: Mapping[str, Any]) -> TaskRun:
    """One ended task with its report."""
    report: dict[str, Any] = {}
    if task["state"] == "success":
        value = airflow.xcom(dag_id, run_id, task["task_id"], task["map_index"])
        report = value if isinstance(value, dict) else {}
    return TaskRun(task["task_id"], task_label(task, report), task["state"], float(task["duration"] or 0.0), report)


def follow_run(
    airflow: LocalAirflow, clock: Clock, dag_id: str, run_id: str, evaluation_copy: Path | None = None
) -> list[TaskRun]:
    """Watch a run to its end and print a line for every task that ends.

    Args:
        evaluation_copy: where to copy the evaluation's report, before the run's worktree is removed.
    Raises:
        DemoFailed: the run failed; the message ends with the failing task's last log lines.
    """
    ended: list[TaskRun] = []
    failed: list[dict[str, Any]] = []
    for task in airflow.watch(dag_id, run_id):
        task_run = read_task_run(airflow, dag_id, run_id, task)
        is_work = task_run.state == "success" and task_run.task_id not in PLUMBING
        is_unneeded = task_run.state == "skipped" and task_run.task_id in PARTS_ALONE
        if is_work or task_run.state == "failed" or (task_run.state == "skipped" and not is_unneeded):
            clock.print("  " + task_line(task_run))
        if task_run.task_id == "evaluate" and evaluation_copy is not None:
            worktree = Path(airflow.environment["MEGAPAIRS_RUNS"]) / slug(run_id)
            with contextlib.suppress(OSError):
                shutil.copyfile(worktree / "reports" / "evaluation.json", evaluation_copy)
        ended.append(task_run)
        if task_run.state == "failed":
            failed.append(task)
    if airflow.run_state(dag_id, run_id) != "success":
        raise DemoFailed(failure_text(airflow, dag_id, run_id, failed))
    return ended


def failure_text(airflow: LocalAirflow, dag_id: str, run_id: str, failed: Sequence[Mapping[str, Any]]) -> str:
    """Which task failed, and the end of its log."""
    if not failed:
        return f"{dag_id} {run_id}: the run failed, but no task did; see {airflow.logs}"
    task = failed[0]
    lines = [line for line in airflow.task_log(dag_id, run_id, task) if not line.startswith("::")]
    if "Task failed with exception" in lines:  # what follows repeats the stage's last lines
        lines = lines[: lines.index("Task failed with exception")] or lines
    log = "\n".join(f"  | {line}" for line in lines[-LOG_LINES:])
    return f"{dag_id}: task {task['task_id']} failed. The end of its log:\n{log}"


def wait_for_training(airflow: LocalAirflow, timeout_s: float = 600.0) -> str:
    """Id of the fine-tuning run that the second version's asset event starts.

    Raises:
        DemoFailed: none in time, or more than one.
        TransientError: a service of Airflow ended.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        airflow.check_alive()
        runs = airflow.runs(MODEL_DAG)
        if len(runs) > 1:
            raise DemoFailed(f"{MODEL_DAG}: {len(runs)} runs, expected the one that the second version starts")
        if runs:
            return str(runs[0]["dag_run_id"])
        time.sleep(0.5)
    raise DemoFailed(
        f"{MODEL_DAG}: no run within {timeout_s:.0f} s of the second version; the asset event did not arrive"
    )
