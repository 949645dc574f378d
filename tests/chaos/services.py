"""Chaos with Airflow: processes of a production deployment are killed, suspended and cut off under a running week.

The deployment is docker-compose.yaml's twin on this machine (tasks/demo/production_local.py): PostgreSQL, Redis, Celery
workers, each a process with a name. A supervisor starts an Airflow service again that has ended, as the compose file's
`restart: unless-stopped` does; PostgreSQL and Redis come back when the scenario says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.demo.local_airflow import FINISHED
from tasks.demo.processes import is_alive
from tasks.demo.production_local import AIRFLOW_SERVICES, NAMES, WORKERS, ProductionLocal
from tasks.demo.services import Service
from tasks.demo.watch import DATASET_DAG, LOG_LINES, MODEL_DAG
from tasks.errors import TasksError
from tasks.names import slug
from tasks.publish.git import git, read_at, tags
from tasks.sample.world import make_world
from tests.chaos.week import DATE, Outcome
from tests.support.processes import find_stages
from tests.support.waiting import wait_until

IMAGES = 60
OUTAGE_S = 20.0  # of Redis and PostgreSQL
LONG_OUTAGE_S = 100.0  # of the api-server
PAUSE_S = 5.0  # before a killed service is started again
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
        self.restarts = 0
        self.parts = [p.name for p in self.place.iterdir() if p.is_dir() and p.name not in ("airflow", "runs")]
        for name in self.parts:
            shutil.copytree(self.place / name, self.untouched / name, symlinks=True)

    def reset(self) -> None:
        """Every service runs, no run goes on, nothing is published."""
        self.settle()
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

    def trigger(self) -> str:
        """Start the week; returns the run's id."""
        source = [{"name": "sample", "path": str(self.airflow.root / "sources" / "week"), "license_code": "CC0-1.0"}]
        return self.airflow.trigger(DATASET_DAG, {"profile": "test", "date": DATE, "sources": source})

    def stage(self, name: str) -> int:
        """Wait for a stage; its process id."""
        found: list[int] = []
        looks = 0

        def is_running() -> bool:
            nonlocal looks
            looks += 1
            found[:] = find_stages(self.place / "runs", name)
            if not found and looks % 20 == 0:  # seldom: each request is work for the api-server
                self.supervise()
                with contextlib.suppress(TasksError):
                    newest = self.airflow.runs(DATASET_DAG)[-1:]
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

    def follow(self, run_id: str, dag_id: str = DATASET_DAG) -> str:
        """Wait for a run's end; its state."""
        end = time.monotonic() + RUN_LIMIT_S
        while time.monotonic() < end:
            self.supervise()
            with contextlib.suppress(TasksError):
                state = self.airflow.run_state(dag_id, run_id)
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

    def tries(self, run_id: str) -> int:
        """Tries of the run's tasks beyond the first, a count."""
        tasks = self.airflow.task_instances(DATASET_DAG, run_id)
        return sum(max(0, task["try_number"] - 1) for task in tasks if task["state"] in FINISHED)

    def keep(self, name: str, run_id: str) -> Path:
        """Keep what a run that did not go well left: its tasks' last log lines, and the origin; returns the folder."""
        folder = self.airflow.root / "seen" / slug(name)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.place / "origin.git", folder / "origin.git", symlinks=True, dirs_exist_ok=True)
        lines = []
        for task in self.airflow.task_instances(DATASET_DAG, run_id):
            lines.append(json.dumps(task))
            if task["state"] not in ("success", "skipped") or task["try_number"] > 1:
                lines += self.airflow.task_log(DATASET_DAG, run_id, task)[-LOG_LINES:]
        (folder / "tasks.log").write_text("\n".join(lines))
        return folder


def broken(name: str, break_it: Callable[[Stack], int]) -> Callable[[Stack], Outcome]:
    """A scenario: a week during which something is broken.

    Args:
        name: of the scenario.
        break_it: waits for its moment, breaks and mends; returns how many processes it killed.
    """

    def scenario(stack: Stack) -> Outcome:
        stack.reset()
        stack.restarts = 0
        run_id = stack.trigger()
        kills = break_it(stack)
        state = stack.follow(run_id)
        is_same = stack.fingerprint() == stack.expected
        note = (
            f"run {state}, {stack.tries(run_id)} further tries, {stack.restarts} services came back by the supervisor"
        )
        if state != "success" or not is_same:
            note += f"; kept in {stack.keep(name, run_id)}"
        return Outcome(name, state == "success", is_same, kills, note=note)

    return scenario


# --- what is broken --------------------------------------------------------------------------------------------------


def kill_stage(stack: Stack) -> int:
    """SIGKILL of a stage."""
    os.kill(stack.stage("embed"), signal.SIGKILL)
    return 1


def kill_task(stack: Stack) -> int:
    """SIGKILL of the process of Airflow's task, whose child the stage is."""
    stage = stack.stage("embed")
    status = Path(f"/proc/{stage}/stat").read_text()
    os.kill(int(status[status.rindex(")") + 2 :].split()[1]), signal.SIGKILL)
    wait_until(lambda: not is_alive(stage), "the stage ends with its task")
    return 1


def kill_and_start(service: str, stage: str, pause_s: float = PAUSE_S) -> Callable[[Stack], int]:
    """SIGKILL of a service with all its children while a stage runs, what it held in memory is lost; it is started
    again after `pause_s`."""

    def break_it(stack: Stack) -> int:
        stack.stage(stage)
        kills = len(stack.airflow.services.family(service))
        stack.airflow.services.kill(service)
        time.sleep(pause_s)
        stack.airflow.services.start(service)
        return kills

    return break_it


def suspend_worker(stack: Stack) -> int:
    """SIGSTOP of a worker and all its children until the scheduler has given its task up."""
    stage = stack.stage("embed")
    worker = next(n for n in ("worker", "gpu-worker") if stage in stack.airflow.services.family(n))
    stack.airflow.services.suspend(worker)
    try:
        time.sleep(HEARTBEAT_S + 15)
    finally:
        stack.airflow.services.resume(worker)
    return 0


def events_during_a_training(stack: Stack) -> Outcome:
    """Three versions are published while a training runs: the run that they start takes the newest of them."""
    stack.reset()
    state = stack.follow(stack.trigger())
    origin, airflow = stack.place / "origin.git", stack.airflow
    (first,) = tags(origin, "dataset")
    asset = next(a for a in airflow.call("GET", "assets")["assets"] if a["name"] == "megapairs_triplets")
    airflow.set_paused(MODEL_DAG, False)
    training = airflow.trigger(MODEL_DAG, {"profile": "test", "dataset_version": first})
    held = stack.stage("train")
    os.kill(held, signal.SIGSTOP)  # the events come while the training is active
    versions = [f"{first}.{n}" for n in (2, 3, 4)]
    for version in versions:
        git(origin, "tag", version, first)
        airflow.call("POST", "assets/events", {"asset_id": asset["id"], "extra": {"version": version, "changes": {}}})
    wait_until(lambda: len(airflow.runs(MODEL_DAG)) > 1, "the events have made a run", poll_s=1, limit_s=RUN_LIMIT_S)
    os.kill(held, signal.SIGKILL)
    airflow.call("PATCH", f"dags/{MODEL_DAG}/dagRuns/{training}", {"state": "failed"})

    def commands() -> list[str]:
        """The logged command lines of open_run in the runs that the events started."""
        lines: list[str] = []
        for run_id in (r["dag_run_id"] for r in airflow.runs(MODEL_DAG) if r["dag_run_id"] != training):
            for task in airflow.task_instances(MODEL_DAG, run_id):
                if task["task_id"] == "open_run" and task["state"] == "success":
                    lines += [line for line in airflow.task_log(MODEL_DAG, run_id, task) if "--dataset-version" in line]
        return lines

    wait_until(lambda: bool(commands()), "the run that the events started has opened", poll_s=1, limit_s=RUN_LIMIT_S)
    airflow.set_paused(MODEL_DAG, True)
    took = [line.partition("--dataset-version ")[2].split()[0] for line in commands()]
    note = f"published {len(versions)}, the newest {versions[-1]}; trained on {', '.join(took)}"
    return Outcome("events during a training", state == "success", set(took) == {versions[-1]}, 1, note=note)


@contextmanager
def production_patience(stack: Stack) -> Iterator[None]:
    """The scheduler with the compose file's own time before it gives up a task that sends no heartbeat."""
    airflow = stack.airflow

    def restart() -> None:
        service = Service(
            "scheduler",
            airflow.service_command("scheduler"),
            airflow.service_environment("scheduler"),
            airflow.root / "airflow",
        )
        airflow.services.stop("scheduler")
        airflow.services.add(service)
        airflow.services.start("scheduler")

    short = {name: airflow.changes.pop(name) for name in IMPATIENCE}
    restart()
    try:
        yield
    finally:
        airflow.changes |= short
        restart()


def api_server_away(stack: Stack) -> Outcome:
    """The api-server is away for 100 s while a stage works and ends: no work is thrown away, and no try is spent."""
    name = f"api-server away for {LONG_OUTAGE_S:.0f} s"
    with production_patience(stack):
        out = broken(name, kill_and_start("api-server", "embed", LONG_OUTAGE_S))(stack)
    out.is_recovered &= " 0 further tries" in out.note
    return out


def lost_messages(stack: Stack) -> Outcome:
    """Redis forgets what is queued: the scheduler finds it, and sends the tasks again."""
    import redis

    stack.reset()
    stack.restarts = 0
    airflow = stack.airflow
    password = airflow.variables["REDIS_PASSWORD"]
    queue = redis.Redis(port=airflow.ports["redis"], password=password)
    for worker in WORKERS:  # none that waits at the queue: what is sent stays there
        airflow.services.stop(worker)
    lost = 0
    try:
        run_id = stack.trigger()
        wait_until(lambda: queue.llen("default") > 0, "a task is queued", poll_s=0.1, limit_s=RUN_LIMIT_S)
        lost = int(queue.llen("default"))
        queue.delete("default", "gpu")
    finally:
        for worker in WORKERS:
            airflow.services.start(worker)
    start = time.monotonic()

    def is_running() -> bool:
        with contextlib.suppress(TasksError):
            states = [task["state"] for task in airflow.task_instances(DATASET_DAG, run_id)]
            return any(state in ("running", "success") for state in states)
        return False

    wait_until(is_running, "a lost task runs", poll_s=0.5, limit_s=RUN_LIMIT_S)
    found_s = time.monotonic() - start
    state = stack.follow(run_id)
    note = f"{lost} messages lost, found after {found_s:.0f} s; run {state}, {stack.tries(run_id)} further tries"
    is_same = stack.fingerprint() == stack.expected
    return Outcome("Redis loses queued messages", state == "success" and found_s < 90, is_same, note=note)


def service_scenarios() -> dict[str, Callable[[Stack], Outcome]]:
    """Every scenario of this file by a short name."""
    return {
        "stage": broken("SIGKILL of a stage", kill_stage),
        "task": broken("SIGKILL of a task's process", kill_task),
        "worker": broken("SIGKILL of a worker with its children", kill_and_start("worker", "ingest")),
        "scheduler": broken("SIGKILL of the scheduler", kill_and_start("scheduler", "recaption")),
        "api-server": broken("SIGKILL of the api-server", kill_and_start("api-server", "embed")),
        "dag-processor": broken("SIGKILL of the dag-processor", kill_and_start("dag-processor", "select")),
        "suspended": broken("SIGSTOP of a worker past the heartbeat", suspend_worker),
        "redis": broken("Redis away for 20 s", kill_and_start("redis", "recaption", OUTAGE_S)),
        "postgres": broken("PostgreSQL away for 20 s", kill_and_start("postgres", "embed", OUTAGE_S)),
        "api-server-100s": api_server_away,
        "lost-messages": lost_messages,
        "events": events_during_a_training,
    }


@contextmanager
def living_stack(root: Path) -> Iterator[Stack]:
    """A started deployment that has published a week undisturbed; it ends with the block."""
    root.mkdir(parents=True)
    with ProductionLocal(root, CHANGES) as airflow:
        make_world(root / "sources" / "week", seed=5, images=IMAGES, truth=root / "truth.jsonl")
        airflow.start_everything()
        airflow.set_paused(DATASET_DAG, False)
        stack = Stack(airflow)
        run_id = stack.trigger()
        state = stack.follow(run_id)
        stack.expected = stack.fingerprint()
        if state != "success" or len(stack.expected) != 64:
            raise AssertionError(f"the undisturbed run: {state}; kept in {stack.keep('undisturbed', run_id)}")
        yield stack
