"""An Airflow whose runs are over: it tells their tasks, reports and logs, and writes down what it is asked to do."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def ended_task(task_id: str, state: str = "success", map_index: int = -1) -> dict[str, Any]:
    """A task instance as Airflow's REST API gives it."""
    return {"task_id": task_id, "state": state, "map_index": map_index, "duration": 1.5}


class FakeAirflow:
    """A run that is over: its tasks, their reports and one log."""

    def __init__(self, runs_folder: Path, tasks: list[dict[str, Any]], state: str, run_ids: list[str]) -> None:
        self.tasks, self.state, self.run_ids = tasks, state, run_ids
        self.environment = {"MEGAPAIRS_RUNS": str(runs_folder)}
        self.logs = runs_folder / "logs"
        self.actions: list[str] = []

    def watch(self, dag_id: str, run_id: str) -> Iterator[dict[str, Any]]:
        yield from self.tasks

    def xcom(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> dict[str, Any]:
        return {"part": "semantic" if map_index >= 0 else "", "read": 7}

    def run_state(self, dag_id: str, run_id: str) -> str:
        return self.state

    def task_log(self, dag_id: str, run_id: str, task: dict[str, Any]) -> list[str]:
        return ["::group::", "reading", "DataError: broken", "Task failed with exception", "Traceback"]

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        return [{"dag_run_id": run_id} for run_id in self.run_ids]

    url = "http://127.0.0.1:1"

    def migrate_and_start(self) -> None:
        self.actions.append("start")

    def wait_healthy(self, dag_ids: tuple[str, ...]) -> None:
        self.actions.append("healthy")

    def check_alive(self) -> None:
        """Nothing has ended by itself."""

    def make_pools(self) -> None:
        self.actions.append("pools")

    def set_paused(self, dag_id: str, is_paused: bool) -> None:
        self.actions.append(f"{'pause' if is_paused else 'unpause'} {dag_id}")

    def credentials(self) -> tuple[str, str]:
        return "admin", "secret"

    def trigger(self, dag_id: str, conf: Mapping[str, Any]) -> str:
        self.actions.append(f"trigger {dag_id} {conf['date']}")
        return "run"

    def stop(self) -> None:
        self.actions.append("stop")
