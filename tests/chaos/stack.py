"""A production deployment on this machine that the chaos suite breaks, and the version that it publishes undisturbed.

The deployment is docker-compose.yaml's twin on this machine (tasks/demo/production_local.py): PostgreSQL, Redis, Celery
workers, each a process with a name. A supervisor starts an Airflow service again that has ended, as the compose file's
`restart: unless-stopped` does; PostgreSQL and Redis come back when the scenario says so.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.demo.local_airflow import FINISHED
from tasks.demo.production_local import AIRFLOW_SERVICES, NAMES, ProductionLocal
from tasks.demo.watch import DATASET_DAG, LOG_LINES, MODEL_DAG
from tasks.errors import TasksError
from tasks.names import slug
from tasks.publish.git import read_at, tags
from tasks.sample.world import make_world
from tests.chaos.week import DATE
from tests.support.processes import find_stages
from tests.support.waiting import wait_until

IMAGES = 60
RUN_LIMIT_S = 900.0
HEARTBEAT_S = 30  # instead of 420: a killed worker's task is to be noticed within the suite's patience
IMPATIENCE = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_S),
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}
CHANGES = {**IMPATIENCE, "MEGAPAIRS_MAINTENANCE_SCHEDULE": ""}  # nothing else runs


class Stack:
    """The deployment, and what it published undisturbed.

    Args:
        airflow: the started services.
    """

    def __init__(self, airflow: ProductionLocal) -> None:
        self.airflow = airflow
        self.place = airflow.root / "data"
        self.untouched = airflow.root / "untouched"
        self.expected = ""
        self.run_id = ""
        self.restarts = 0
        self.parts = [p.name for p in self.place.iterdir() if p.is_dir() and p.name not in ("airflow", "runs")]
        for name in self.parts:
            shutil.copytree(self.place / name, self.untouched / name, symlinks=True)

    def reset(self) -> None:
        """Every service runs, no run goes on, nothing is published."""
        self.settle()
        self.restarts = 0
        for name in self.parts:
            shutil.rmtree(self.place / name, ignore_errors=True)
            shutil.copytree(self.untouched / name, self.place / name, symlinks=True)
        shutil.rmtree(self.place / "runs", ignore_errors=True)
        (self.place / "runs").mkdir()

    def settle(self) -> None:
        """Start what an earlier scenario left down, and end the runs that it left going on."""
        for name in self.airflow.services.names:
            if name in NAMES and not self.airflow.services.is_running(name):
                self.airflow.services.start(name)
            self.airflow.services.resume(name)
        self.airflow.wait_healthy((DATASET_DAG, MODEL_DAG))
        for dag_id in (DATASET_DAG, MODEL_DAG):
            for run in self.airflow.runs(dag_id):
                if run["state"] not in ("success", "failed"):
                    self.airflow.call("PATCH", f"dags/{dag_id}/dagRuns/{run['dag_run_id']}", {"state": "failed"})
        wait_until(lambda: not find_stages(self.place / "runs"), "no stage of an earlier scenario is left", poll_s=0.5)

    def trigger(self) -> None:
        """Start the week: the run `run_id`."""
        source = [{"name": "sample", "path": str(self.airflow.root / "sources" / "week"), "license_code": "CC0-1.0"}]
        self.run_id = self.airflow.trigger(DATASET_DAG, {"profile": "test", "date": DATE, "sources": source})

    def stage(self, name: str, dag_id: str = DATASET_DAG) -> int:
        """Wait for a stage of the newest run; its process id."""
        found: list[int] = []
        looks = 0

        def is_running() -> bool:
            nonlocal looks
            looks += 1
            found[:] = find_stages(self.place / "runs", name)
            if not found and looks % 20 == 0:  # seldom: each request is work for the api-server
                self.supervise()
                with contextlib.suppress(TasksError):
                    newest = self.airflow.runs(dag_id)[-1:]
                    assert not newest or newest[0]["state"] != "failed", f"the run failed before stage {name} ran"
            return bool(found)

        wait_until(is_running, f"stage {name} runs", poll_s=0.1, limit_s=RUN_LIMIT_S)
        return found[0]

    def supervise(self) -> None:
        """Start Airflow's services again that have ended."""
        for name in AIRFLOW_SERVICES:
            if not self.airflow.services.is_running(name):
                self.restarts += 1
                self.airflow.services.start(name)

    def follow(self) -> str:
        """Wait for the week's end; its run's state."""
        end = time.monotonic() + RUN_LIMIT_S
        while time.monotonic() < end:
            self.supervise()
            with contextlib.suppress(TasksError):
                state = self.airflow.run_state(DATASET_DAG, self.run_id)
                if state in ("success", "failed"):
                    return state
            time.sleep(1)
        return "no end"

    def fingerprint(self) -> str:
        """Of the one version that was published; says so where there is none or another number."""
        origin = self.place / "origin.git"
        versions = tags(origin, "dataset")
        if len(versions) != 1:
            return f"{len(versions)} versions"
        return str(json.loads(read_at(origin, versions[0], "version.json") or b"{}").get("fingerprint"))

    def tries(self) -> int:
        """Tries of the week's tasks beyond the first, a count."""
        tasks = self.airflow.task_instances(DATASET_DAG, self.run_id)
        return sum(max(0, task["try_number"] - 1) for task in tasks if task["state"] in FINISHED)

    def keep(self, name: str) -> Path:
        """Keep what a week that did not go well left: its tasks' last log lines, and the origin; returns the folder."""
        folder = self.airflow.root / "seen" / slug(name)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.place / "origin.git", folder / "origin.git", symlinks=True, dirs_exist_ok=True)
        lines = []
        for task in self.airflow.task_instances(DATASET_DAG, self.run_id):
            lines.append(json.dumps(task))
            if task["state"] not in ("success", "skipped") or task["try_number"] > 1:
                lines += self.airflow.task_log(DATASET_DAG, self.run_id, task)[-LOG_LINES:]
        (folder / "tasks.log").write_text("\n".join(lines))
        return folder


@contextmanager
def living_stack(root: Path, expected: str = "") -> Iterator[Stack]:
    """A started deployment and what it publishes undisturbed; it ends with the block.

    Args:
        root: folder of the deployment, made here.
        expected: fingerprint of an undisturbed week of the same code; '' lives that week first.
    """
    root.mkdir(parents=True)
    with ProductionLocal(root, CHANGES) as airflow:
        make_world(root / "sources" / "week", seed=5, images=IMAGES, truth=root / "truth.jsonl")
        airflow.start_everything()
        airflow.set_paused(DATASET_DAG, False)
        stack = Stack(airflow)
        stack.expected = expected
        if not expected:
            stack.trigger()
            state = stack.follow()
            stack.expected = stack.fingerprint()
            if state != "success" or len(stack.expected) != 64:
                raise AssertionError(f"the undisturbed run: {state}; kept in {stack.keep('undisturbed')}")
        yield stack
