"""Chaos with Airflow: processes of a production deployment are killed, suspended and cut off under a running week.

A week takes minutes and has many stages, so several disturbances share one, each at a stage of its own, the next one
when the one before is over: WEEKS. They are equal when the week is, and recovered when each did what it had to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.demo.processes import is_alive
from tasks.demo.production_local import WORKERS
from tasks.demo.services import Service
from tasks.demo.watch import DATASET_DAG, MODEL_DAG
from tasks.errors import TasksError
from tasks.publish.git import git, tags
from tests.chaos.stack import HEARTBEAT_S, IMPATIENCE, RUN_LIMIT_S, Stack
from tests.chaos.week import Outcome
from tests.support.waiting import wait_until

OUTAGE_S = 20.0  # of Redis and PostgreSQL
LONG_OUTAGE_S = 100.0  # of the api-server
PAUSE_S = 5.0  # before a killed service is started again
FOUND_S = 90.0  # a lost message must be found within: 40 s, a check each 10 s, and the start of the workers


@dataclass(frozen=True)
class Disturbance:
    """Something that is broken during a week.

    Attributes:
        title: for the table.
        break_it: waits for its moment, breaks and mends; returns how many processes it killed, and what it saw.
        starts_the_week: it is there from the week's start, which it triggers.
        costs_no_try: no task may need a further try for it; it has a week of its own.
    """

    title: str
    break_it: Callable[[Stack], tuple[int, str]]
    starts_the_week: bool = False
    costs_no_try: bool = False


def kill_stage(name: str) -> Callable[[Stack], tuple[int, str]]:
    """SIGKILL of a stage."""

    def break_it(stack: Stack) -> tuple[int, str]:
        os.kill(stack.stage(name), signal.SIGKILL)
        return 1, ""

    return break_it


def kill_task(name: str) -> Callable[[Stack], tuple[int, str]]:
    """SIGKILL of the process of Airflow's task, whose child the stage is."""

    def break_it(stack: Stack) -> tuple[int, str]:
        stage = stack.stage(name)
        status = Path(f"/proc/{stage}/stat").read_text()
        os.kill(int(status[status.rindex(")") + 2 :].split()[1]), signal.SIGKILL)
        wait_until(lambda: not is_alive(stage), "the stage ends with its task")
        return 1, ""

    return break_it


def kill_and_start(service: str, stage: str, pause_s: float = PAUSE_S) -> Callable[[Stack], tuple[int, str]]:
    """SIGKILL of a service with all its children while a stage runs, what it held in memory is lost; it is started
    again after `pause_s`."""

    def break_it(stack: Stack) -> tuple[int, str]:
        stack.stage(stage)
        kills = len(stack.airflow.services.family(service))
        stack.airflow.services.kill(service)
        time.sleep(pause_s)
        stack.airflow.services.start(service)
        return kills, ""

    return break_it


def suspend_worker(name: str) -> Callable[[Stack], tuple[int, str]]:
    """SIGSTOP of a worker and all its children, while a stage runs, until the scheduler has given its task up."""

    def break_it(stack: Stack) -> tuple[int, str]:
        stage = stack.stage(name)
        worker = next(n for n in WORKERS if stage in stack.airflow.services.family(n))
        stack.airflow.services.suspend(worker)
        try:
            time.sleep(HEARTBEAT_S + 15)
        finally:
            stack.airflow.services.resume(worker)
        return 0, f"{worker} stood still for {HEARTBEAT_S + 15} s"

    return break_it


def forget_the_queue(stack: Stack) -> tuple[int, str]:
    """Redis forgets what is queued: the scheduler finds it, and sends the tasks again."""
    import redis

    airflow = stack.airflow
    queue = redis.Redis(port=airflow.ports["redis"], password=airflow.variables["REDIS_PASSWORD"])
    for worker in WORKERS:  # none that waits at the queue: what is sent stays there
        airflow.services.stop(worker)
    try:
        stack.trigger()
        wait_until(lambda: queue.llen("default") > 0, "a task is queued", poll_s=0.1, limit_s=RUN_LIMIT_S)
        lost = int(queue.llen("default"))
        queue.delete("default", "gpu")
    finally:
        for worker in WORKERS:
            airflow.services.start(worker)
    start = time.monotonic()

    def is_running() -> bool:
        with contextlib.suppress(TasksError):
            tasks = airflow.task_instances(DATASET_DAG, stack.run_id)
            return any(task["state"] in ("running", "success") for task in tasks)
        return False

    wait_until(is_running, "a lost task runs", poll_s=0.5, limit_s=RUN_LIMIT_S)
    found_s = time.monotonic() - start
    assert found_s < FOUND_S, f"{lost} messages lost, found only after {found_s:.0f} s"
    return 0, f"{lost} messages lost, found after {found_s:.0f} s"


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


DISTURBANCES = {
    "api-server-100s": Disturbance(
        f"the api-server away for {LONG_OUTAGE_S:.0f} s",
        kill_and_start("api-server", "embed", LONG_OUTAGE_S),
        costs_no_try=True,
    ),
    "lost-messages": Disturbance("Redis loses queued messages", forget_the_queue, starts_the_week=True),
    "worker": Disturbance("SIGKILL of a worker with its children", kill_and_start("worker", "ingest")),
    "dag-processor": Disturbance("SIGKILL of the dag-processor", kill_and_start("dag-processor", "validate")),
    "scheduler": Disturbance("SIGKILL of the scheduler", kill_and_start("scheduler", "recaption")),
    "stage": Disturbance("SIGKILL of a stage", kill_stage("embed")),
    "redis": Disturbance(f"Redis away for {OUTAGE_S:.0f} s", kill_and_start("redis", "mine", OUTAGE_S)),
    "task": Disturbance("SIGKILL of a task's process", kill_task("select")),
    "suspended": Disturbance("SIGSTOP of a worker past the heartbeat", suspend_worker("caption")),
    "postgres": Disturbance(f"PostgreSQL away for {OUTAGE_S:.0f} s", kill_and_start("postgres", "judge", OUTAGE_S)),
    "api-server": Disturbance("SIGKILL of the api-server", kill_and_start("api-server", "version")),
}
# Those of one tuple share a week, in the order of their stages: no stage is tried more often than it may be.
ALONE = tuple(name for name, one in DISTURBANCES.items() if one.costs_no_try)
WEEKS = (*((name,) for name in ALONE), tuple(name for name in DISTURBANCES if name not in ALONE))
EVENTS = "events"  # the last: it trains on what the weeks before have published
NAMES = (*(name for names in WEEKS for name in names), EVENTS)


def disturbed_week(stack: Stack, names: Sequence[str]) -> list[Outcome]:
    """A week with disturbances, one after the other; an outcome each."""
    wanted = [DISTURBANCES[name] for name in names]
    costs_no_try = any(one.costs_no_try for one in wanted)
    outcomes = []
    with production_patience(stack) if costs_no_try else contextlib.nullcontext():
        stack.reset()
        if not wanted[0].starts_the_week:
            stack.trigger()
        for one in wanted:
            start, out = time.monotonic(), Outcome(one.title)
            try:
                out.kills, out.note = one.break_it(stack)
                out.is_recovered = True
            except Exception as error:
                out.note = f"{type(error).__name__}: {error}"[:500]
            out.seconds = time.monotonic() - start
            outcomes.append(out)
        start = time.monotonic()
        state, tries = stack.follow(), stack.tries()
    is_equal = stack.fingerprint() == stack.expected
    note = f"run {state}, {tries} further tries, {stack.restarts} services came back by the supervisor"
    if state != "success" or not is_equal:
        note += f"; kept in {stack.keep('-'.join(names))}"
    for out in outcomes:
        out.is_recovered &= state == "success" and not (costs_no_try and tries)
        out.is_equal = is_equal
        out.note = f"{out.note}; {note}".removeprefix("; ")
    outcomes[-1].seconds += time.monotonic() - start
    return outcomes


def published_version(stack: Stack) -> str:
    """The version of the week before, or of a new one where none is there.

    Raises:
        AssertionError: that week failed.
    """
    origin = stack.place / "origin.git"
    stack.settle()
    if not tags(origin, "dataset"):
        stack.reset()
        stack.trigger()
        state = stack.follow()
        assert state == "success", f"the week before the training: {state}; kept in {stack.keep(EVENTS)}"
    return tags(origin, "dataset")[-1]


def events_during_a_training(stack: Stack) -> Outcome:
    """Three versions are published while a training runs: the run that they start takes the newest of them."""
    first = published_version(stack)
    origin, airflow = stack.place / "origin.git", stack.airflow
    asset = next(a for a in airflow.call("GET", "assets")["assets"] if a["name"] == "megapairs_triplets")
    airflow.set_paused(MODEL_DAG, False)
    training = airflow.trigger(MODEL_DAG, {"profile": "test", "dataset_version": first})
    held = stack.stage("train", MODEL_DAG)
    os.kill(held, signal.SIGSTOP)  # the events come while the training is active
    versions = [f"{first}.{n}" for n in (2, 3, 4)]
    for version in versions:
        git(origin, "tag", version, first)
        airflow.call("POST", "assets/events", {"asset_id": asset["id"], "extra": {"version": version, "changes": {}}})
    os.kill(held, signal.SIGKILL)  # Airflow makes the next run when no other is active
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
    return Outcome("three versions during a training", True, set(took) == {versions[-1]}, 1, note=note)
