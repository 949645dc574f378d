"""Run both DAGs on the compose file's twin: Celery workers, PostgreSQL, Redis, S3, mail. `make production-local`.

    python -m tasks production_local [--profile test|demo] [--root .run/production-local] [--seed 7]

Draws the sample world and starts the stack of `tasks.demo.production_local`. Then: one dataset_refresh, green; the
bge_vl_finetune run that its asset event starts, green; a batch of copies that the gate `images` stops, with its mail.
Each check that fails ends the command with a message. Prints one line per task and, as the last line, one JSON object.
Everything that was started is stopped at the end, after a failure and on Ctrl-C; logs and data stay below the root.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.demo.demo import interrupted_by_signals, terminate
from tasks.demo.local_airflow import PROJECT
from tasks.demo.production_local import AIRFLOW_SERVICES, GIT, LOG_FOLDER, ProductionLocal
from tasks.demo.setup import (
    SIZES,
    DemoFailed,
    demo_conf,
    draw_world,
    empty_root,
    finish_benchmark,
    start_benchmark,
)
from tasks.demo.watch import DATASET_DAG, MODEL_DAG, Clock, follow_run, wait_for_training
from tasks.publish.git import tags
from tasks.sample.world import poison_copies

DEFAULT_QUEUE, GPU_QUEUE = "default", "gpu"
MAIL_TIMEOUT_S = 120.0
HEALTH_TIMEOUT_S = 300.0
# One core is what each of two workers has here; pool slots as many as worker processes.
VARIABLES = {"WORKER_SLOTS": "2", "GPU_WORKER_SLOTS": "2", "GPU_SLOTS": "2", "MEGAPAIRS_MAIL_TO": "data@example.org"}

# The profile `test`, with still less to do: what is shown is who works where, not what comes of it.
SMALLER: dict[str, dict[str, Any]] = {
    "test": {
        "select": {"pairs_per_batch": 32},
        "train": {"steps": 6, "warmup_steps": 2, "batch_triplets": 8, "locked_steps": 2, "locked_batch_triplets": 8},
    }
}


def check_queues(tasks: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Every task ran on the queue of its pool; returns queue -> tasks that ran there.

    Args:
        tasks: task instances of the REST API.

    Raises:
        DemoFailed: a task of the pool `gpu` ran elsewhere, another one ran there, or a queue had no task.
    """
    counts = {DEFAULT_QUEUE: 0, GPU_QUEUE: 0}
    for task in tasks:
        if task["state"] != "success":
            continue
        expected = GPU_QUEUE if task["pool"] == "gpu" else DEFAULT_QUEUE
        if task["queue"] != expected:
            raise DemoFailed(f"{task['task_id']}: ran on queue {task['queue']!r}; expected {expected!r}")
        counts[expected] += 1
    if not all(counts.values()):
        raise DemoFailed(f"tasks by queue: {counts}; expected some on each")
    return counts


def check_remote_log(stack: ProductionLocal, dag_id: str, run_id: str, task: Mapping[str, Any]) -> int:
    """A task's log, read through the API from the worker that wrote it; returns its lines, a count.

    Raises:
        DemoFailed: it lies where the api-server looks itself, or its stage's last line is not in it.
    """
    here = Path(stack.service_environment("api-server")[LOG_FOLDER])
    if any(here.glob(f"dag_id={dag_id}/*/task_id={task['task_id']}/**/*.log")):
        raise DemoFailed(f"{task['task_id']}: its log is in {here}; expected it on the worker alone")
    lines = stack.task_log(dag_id, run_id, task)
    if not any(line.startswith(task["task_id"]) and ": read " in line for line in lines):
        last = "\n".join(lines[-10:])
        raise DemoFailed(
            f"{task['task_id']}: the API did not give its log with the stage's counts. Last lines:\n{last}"
        )
    return len(lines)


def check_health(stack: ProductionLocal, clock: Clock) -> list[str]:
    """Every health check of the compose file, on this project's services; returns the names of the healthy ones.

    Raises:
        DemoFailed: one is not healthy in time; the message has what its check says.
    """
    names = (*AIRFLOW_SERVICES, GIT)
    end = time.monotonic() + HEALTH_TIMEOUT_S
    waiting = list(names)
    while waiting:
        problems = {name: problem for name in waiting if (problem := stack.health_problem(name))}
        waiting = list(problems)
        stack.check_alive()
        if waiting and time.monotonic() > end:
            raise DemoFailed(f"not healthy after {HEALTH_TIMEOUT_S:.0f} s: {'; '.join(problems.values())}")
    clock.print(f"healthy by the compose file's own checks: {', '.join(names)}")
    return list(names)


def clone_version(stack: ProductionLocal, folder: Path) -> str:
    """Clone the dataset repository by HTTP, as a stranger would; returns the newest version's tag.

    Raises:
        DemoFailed: git could not clone, or the clone has no version.
    """
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder.parent), "GIT_TERMINAL_PROMPT": "0"}
    command = ["git", "clone", "-q", stack.clone_url, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"{stack.clone_url}: git clone ended with {done.returncode}: {done.stderr[-1000:]}")
    found = tags(folder, "dataset")
    if not found or not (folder / "version.json").exists():
        raise DemoFailed(f"{stack.clone_url}: the clone holds no version; its tags: {found}")
    return found[-1]


def wait_for_mail(stack: ProductionLocal, words: str) -> str:
    """Subject of the mail whose subject holds `words`.

    Raises:
        DemoFailed: none came in time; the message has the subjects that did.
    """
    end = time.monotonic() + MAIL_TIMEOUT_S
    while time.monotonic() < end:
        subjects = [" ".join(str(mail["Subject"]).split()) for mail in stack.received_mails()]
        for subject in subjects:
            if words in subject:
                return subject
        stack.check_alive()
        time.sleep(0.5)
    raise DemoFailed(f"mail: none with {words!r} within {MAIL_TIMEOUT_S:.0f} s; came: {subjects}")


def stop_at_the_gate(stack: ProductionLocal, clock: Clock, conf: Mapping[str, Any], root: Path) -> str:
    """A batch of copies: the run fails at the gate `images` and its mail arrives; returns the mail's subject.

    Raises:
        DemoFailed: the run was green, or no mail came.
    """
    source = shutil.copytree(root / "source", root / "poisoned")
    poison_copies(source, seed=1, images=200, truth=root / "poisoned.jsonl")
    sources = [{**conf["sources"][0], "path": str(source)}]
    clock.print(f"{DATASET_DAG}, a batch of copies that the gate must stop")
    run_id = stack.trigger(DATASET_DAG, {**conf, "sources": sources})
    states = {task["task_id"]: task["state"] for task in stack.watch(DATASET_DAG, run_id)}
    if states.get("validate_images") != "failed":
        raise DemoFailed(f"{DATASET_DAG}: the gate did not stop a batch of copies: {states}")
    subject = wait_for_mail(stack, "gate 'images'")
    clock.print(f"  mail: {subject}")
    return subject


def tell_story(stack: ProductionLocal, profile: str, root: Path, clock: Clock) -> dict[str, Any]:
    """Both DAGs on a stack that is up; returns what was seen.

    Raises:
        DemoFailed: a run failed, or a check did.
    """
    for dag_id in (DATASET_DAG, MODEL_DAG):
        stack.set_paused(dag_id, False)
    conf = {**demo_conf(root, profile, datetime.datetime.now(datetime.UTC).date()), **SMALLER.get(profile, {})}
    clock.print(DATASET_DAG)
    run_id = stack.trigger(DATASET_DAG, conf)
    healthy = check_health(stack, clock)
    follow_run(stack, clock, DATASET_DAG, run_id)
    tasks = stack.task_instances(DATASET_DAG, run_id)
    queues = check_queues(tasks)
    by_id = {task["task_id"]: task for task in tasks}
    log_lines = {name: check_remote_log(stack, DATASET_DAG, run_id, by_id[name]) for name in ("ingest", "recaption")}
    version = clone_version(stack, root / "clone")
    clock.print(f"{version}, cloned from {stack.clone_url}")
    training_id = wait_for_training(stack)
    subject = stop_at_the_gate(stack, clock, conf, root)
    clock.print(f"{MODEL_DAG}, started by the version's asset event")
    follow_run(stack, clock, MODEL_DAG, training_id)
    (training,) = stack.runs(MODEL_DAG)
    if training["run_type"] != "asset_triggered":
        raise DemoFailed(f"{MODEL_DAG}: run type {training['run_type']!r}; expected 'asset_triggered'")
    return {
        "dataset_refresh": stack.run_state(DATASET_DAG, run_id),
        "bge_vl_finetune": stack.run_state(MODEL_DAG, training_id),
        "started_by": training["run_type"],
        "tasks_by_queue": queues,
        "log_lines": log_lines,
        "mail": subject,
        "cloned": version,
        "healthy": healthy,
    }


def run_story(root: Path, profile: str, seed: int) -> dict[str, Any]:
    """Start the stack, run the story, stop the stack; returns what was seen, with its wall times in s.

    Raises:
        ConfigError: PostgreSQL or Redis is not installed.
        DemoFailed: a run failed, or a check did.
        TransientError: a service ended or did not answer.
    """
    empty_root(root)
    clock = Clock()
    with contextlib.ExitStack() as cleanup:
        stack = cleanup.enter_context(ProductionLocal(root, variables=VARIABLES))
        print(f"MegaPairs: the compose file's twin, profile '{profile}', all of it in {root}", flush=True)
        draw_world(root, seed, SIZES[profile].first, 0)
        benchmark = start_benchmark(root, SIZES[profile])
        cleanup.callback(terminate, benchmark)
        stack.start_everything()
        user, password = stack.credentials()
        clock.print(f"up: {stack.url} (user {user}, password {password}, while this runs)")
        seconds = {"up": round(clock.seconds(), 1)}
        finish_benchmark(root, benchmark)
        seen = tell_story(stack, profile, root, clock)
    seconds["total"] = round(clock.seconds(), 1)
    clock.print("everything that was started has been stopped")
    return {**seen, "seconds": seconds}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks production_local`."""
    parser.add_argument("--profile", choices=sorted(SIZES), default="test", help="test (default, minutes) or demo")
    parser.add_argument(
        "--root",
        type=Path,
        default=PROJECT / ".run" / "production-local",
        help="folder for all that it makes (default: .run/production-local)",
    )
    parser.add_argument("--seed", type=int, default=7, help="of the sample world (default 7)")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Run the story; what was seen, which is printed as one line of JSON and kept as <root>/summary.json.

    Raises:
        ConfigError, DemoFailed, TransientError: as of `run_story`.
    """
    root: Path = args.root.resolve()
    try:
        with interrupted_by_signals():
            seen = run_story(root, args.profile, args.seed)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    (root / "summary.json").write_text(json.dumps(seen, indent=2) + "\n")
    if not args.json:
        print(json.dumps(seen), flush=True)
    return seen
