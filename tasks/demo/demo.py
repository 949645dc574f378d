"""The whole factory on this machine: two weekly versions of a sample dataset, then one fine-tuning. `make demo`.

    python -m tasks demo [--profile demo|test] [--root .demo] [--seed 7] [--keep]
    python -m tasks demo --ui          Airflow on what the last demo left, until Ctrl-C

Draws the sample world, lays a deployment out (origin, DVC remote, clone), starts an embedded Airflow, runs the DAG
dataset_refresh on a first batch of images and on a second one, and waits for the bge_vl_finetune run that the second
version's asset event starts. Writes <root>/summary.json and <root>/gallery.html. What ran is the checkout's last
commit. The driver talks to Airflow by REST and imports none of it; it needs the standard library and httpx.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks.demo.local_airflow import PROJECT, LocalAirflow
from tasks.demo.summary import PLUMBING, Finished, collect, drops_of, git_output, read_json, summary_text, task_line
from tasks.errors import TasksError
from tasks.names import slug

DATASET_DAG, MODEL_DAG = "dataset_refresh", "bge_vl_finetune"
MARKER = ".megapairs-demo"  # a folder without it is never removed
LOG_LINES = 40  # of a failing task, printed at the end


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of the sample world a profile takes: files in each batch, queries and gallery images of the benchmark."""

    first: int
    second: int
    queries: int
    gallery: int


SIZES = {"demo": Size(2200, 260, 500, 2000), "test": Size(200, 40, 40, 160)}


class DemoFailed(TasksError):
    """A run failed; holds the failing task's own last lines."""


# --- printing -------------------------------------------------------------------------------------------------------


class Clock:
    """Prints lines with the time since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def seconds(self) -> float:
        """Wall time since the start, s."""
        return time.monotonic() - self.start

    def say(self, text: str) -> None:
        """One line."""
        minutes, seconds = divmod(int(self.seconds()), 60)
        print(f"{minutes:3d}:{seconds:02d}  {text}", flush=True)


# --- the summary ----------------------------------------------------------------------------------------------------


# --- the parts of the demo ------------------------------------------------------------------------------------------


def empty_root(root: Path) -> None:
    """Remove what an earlier demo made, and nothing else.

    Raises:
        DemoFailed: the folder holds something that no demo made.
    """
    if root.exists() and any(root.iterdir()):
        if not (root / MARKER).exists():
            raise DemoFailed(
                f"{root} was not made by a demo (no {MARKER} in it); name another folder with --root, or remove it yourself"
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text("Made by `make demo`, which removes this folder when it starts again.\n")


def lay_out_deployment(root: Path) -> None:
    """Origin, DVC remote, the deployment's clone and the cache below `root`, from the checkout's last commit."""
    from tasks.publish.deployment import configure_deployment

    configure_deployment(
        root / "origin.git", root / "dataset", str(root / "dvc-remote"), root / "dvc-cache", checkout=PROJECT
    )


def draw_world(root: Path, seed: int, images: int, offset: int) -> dict[str, int]:
    """A batch of the sample world in <root>/source; its truth goes to <root>/truth.jsonl."""
    from tasks.sample.world import make_world

    return make_world(root / "source", seed=seed, images=images, offset=offset, truth=root / "truth.jsonl")


def start_benchmark(root: Path, size: Size) -> subprocess.Popen[bytes]:
    """Draw the held-out benchmark beside the first run; it is needed only when a model is evaluated."""
    command = [
        sys.executable,
        "-m",
        "tasks.sample.benchmark",
        str(root / "benchmark"),
        "--queries",
        str(size.queries),
        "--gallery",
        str(size.gallery),
    ]
    (root / "benchmark").mkdir()
    with open(root / "benchmark.log", "wb") as log:
        return subprocess.Popen(
            ["nice", *command] if shutil.which("nice") else command, cwd=PROJECT, stdout=log, stderr=log
        )


def run_conf(root: Path, profile: str, date: datetime.date) -> dict[str, Any]:
    """The trigger form's values of the demo's runs: its own folders, and the run's date."""
    source = {
        "name": "sample",
        "path": str(root / "source"),
        "license_code": "CC0-1.0",
        "attribution": "MegaPairs sample world",
    }
    return {
        "profile": profile,
        "sources": [source],
        "date": date.isoformat(),
        "evaluate": {"benchmark": str(root / "benchmark"), "truth": str(root / "truth.jsonl")},
    }


def label_of(task: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """What a mapped task was mapped to: the report's own part, else Airflow's label."""
    return (
        "" if task["map_index"] < 0 else str(report.get("part") or task.get("rendered_map_index") or task["map_index"])
    )


def follow(airflow: LocalAirflow, clock: Clock, dag_id: str, run_id: str, keep: Path | None = None) -> list[Finished]:
    """Watch a run to its end, a line for every task that finishes.

    Args:
        keep: where to copy the evaluation's report, before the run's worktree goes away.
    Raises:
        DemoFailed: the run failed; holds the failing task's last log lines.
    """
    finished: list[Finished] = []
    failed: list[dict[str, Any]] = []
    for task in airflow.watch(dag_id, run_id):
        found = airflow.xcom(dag_id, run_id, task["task_id"], task["map_index"]) if task["state"] == "success" else None
        report = found if isinstance(found, dict) else {}
        one = Finished(task["task_id"], label_of(task, report), task["state"], float(task["duration"] or 0.0), report)
        if one.state in ("failed", "skipped") or (one.state == "success" and one.task_id not in PLUMBING):
            clock.say("  " + task_line(one))
        if one.task_id == "evaluate" and keep is not None:
            evaluation = Path(airflow.environment["MEGAPAIRS_RUNS"]) / slug(run_id) / "reports" / "evaluation.json"
            with contextlib.suppress(OSError):
                shutil.copyfile(evaluation, keep)
        finished.append(one)
        if one.state == "failed":
            failed.append(task)
    if airflow.run_state(dag_id, run_id) != "success":
        raise DemoFailed(failure_text(airflow, dag_id, run_id, failed))
    return finished


def failure_text(airflow: LocalAirflow, dag_id: str, run_id: str, failed: Sequence[Mapping[str, Any]]) -> str:
    """Which task failed, and the end of its log."""
    if not failed:
        return f"{dag_id} {run_id}: the run failed, but no task did; see {airflow.logs}"
    task = failed[0]
    lines = [line for line in airflow.task_log(dag_id, run_id, task) if not line.startswith("::")]
    if "Task failed with exception" in lines:  # what follows repeats the stage's own last lines
        lines = lines[: lines.index("Task failed with exception")] or lines
    return f"{dag_id}: task {task['task_id']} failed. The end of its log:\n" + "\n".join(
        f"  | {line}" for line in lines[-LOG_LINES:]
    )


def wait_for_training(airflow: LocalAirflow, timeout_s: float = 60.0) -> str:
    """Id of the fine-tuning run that the asset event starts.

    Raises:
        DemoFailed: none in time, or more than one.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        runs = airflow.runs(MODEL_DAG)
        if len(runs) > 1:
            raise DemoFailed(f"{MODEL_DAG}: {len(runs)} runs, expected the one that the second version starts")
        if runs:
            return str(runs[0]["dag_run_id"])
        time.sleep(0.5)
    raise DemoFailed(
        f"{MODEL_DAG}: no run within {timeout_s:.0f} s of the second version; the asset event did not arrive"
    )


def copy_gallery(root: Path, version: str) -> None:
    """The newest version's gallery page as <root>/gallery.html, with the scores of the model that it trained."""
    from tasks.pages.gallery import with_retrieval
    from tasks.publish.published import published_bytes

    page = published_bytes(root / "dataset", "reports/gallery.html", f"refs/tags/{version}").decode()
    (root / "gallery.html").write_text(with_retrieval(page, read_json(root / "evaluation.json")), encoding="utf-8")


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that what was started is stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    old = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def run_demo(
    root: Path, profile: str, seed: int, keep: bool, airflow_changes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The whole story; returns the summary.

    Raises:
        DemoFailed: a run failed, or the folder is somebody else's.
        TasksError: Airflow or the deployment could not be set up.
    """
    clock, size = Clock(), SIZES[profile]
    empty_root(root)
    print(
        f"MegaPairs: two weekly versions and one fine-tuning on this machine, profile '{profile}', all of it in {root}",
        flush=True,
    )
    if git_output(PROJECT, "status", "--porcelain", "--untracked-files=no"):
        print(
            "       note: what runs is the last commit; changes of the checkout that are not committed take no part",
            flush=True,
        )
    airflow = LocalAirflow(root, airflow_changes)
    benchmark: subprocess.Popen[bytes] | None = None
    pool = ThreadPoolExecutor(1)
    try:
        drawing = pool.submit(draw_world, root, seed, size.first, 0)
        airflow.migrate_and_start()
        lay_out_deployment(root)
        files = drawing.result()
        clock.say(
            f"the sample world: {sum(files.values()):,} files ({', '.join(f'{n:,} {kind}' for kind, n in files.items())})"
        )
        airflow.wait_healthy((DATASET_DAG, MODEL_DAG))
        airflow.make_pool("gpu", 2)
        airflow.set_paused(DATASET_DAG, False)
        benchmark = start_benchmark(root, size)
        user, password = airflow.credentials()
        clock.say(f"Airflow is up: {airflow.url} (user {user}, password {password}, while this runs)")

        today = datetime.datetime.now(datetime.UTC).date()
        weeks: list[list[Finished]] = []
        for week, date in enumerate((today - datetime.timedelta(days=7), today)):
            if week:
                more = draw_world(root, seed, size.second, size.first)
                clock.say(f"a week later: {sum(more.values()):,} more files in the same folder")
                airflow.set_paused(MODEL_DAG, False)  # paused until now: the first version starts no training
            clock.say(f"{DATASET_DAG}, {('first', 'second')[week]} batch")
            run_id = airflow.trigger(DATASET_DAG, run_conf(root, profile, date))
            if week and benchmark.wait() != 0:
                raise DemoFailed(f"the benchmark could not be drawn:\n{(root / 'benchmark.log').read_text()[-2000:]}")
            weeks.append(follow(airflow, clock, DATASET_DAG, run_id))
            if any(task.task_id == "version" and task.state == "skipped" for task in weeks[-1]):
                left_out = json.dumps(drops_of(weeks[-1]))
                raise DemoFailed(
                    f"{DATASET_DAG}: no version was published, so there is nothing to train on. What was left out: {left_out}"
                )
        clock.say(f"{MODEL_DAG}, started by the second version")
        training = follow(airflow, clock, MODEL_DAG, wait_for_training(airflow), root / "evaluation.json")
        summary = collect(root, weeks, training, clock.seconds())
        if summary["versions"]:
            copy_gallery(root, summary["versions"][-1])
    finally:
        if benchmark is not None and benchmark.poll() is None:
            benchmark.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        if not keep:
            airflow.stop()
    summary["seconds"]["total"] = round(clock.seconds(), 1)
    (root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(summary_text(summary, Path(os.path.relpath(root))), flush=True)
    return summary


def serve_ui(root: Path) -> None:
    """Airflow on what the last demo left, until Ctrl-C.

    Raises:
        DemoFailed: there is no demo to show.
    """
    if not (root / "airflow" / "airflow.db").exists():
        raise DemoFailed(f"{root}: no Airflow to show yet; run `make demo` first")
    with LocalAirflow(root) as airflow:
        print("starting Airflow ...", flush=True)
        airflow.migrate_and_start()
        airflow.wait_healthy((DATASET_DAG, MODEL_DAG))
        user, password = airflow.credentials()
        print(
            f"\n  {airflow.url}\n  user {user}, password {password}\n\nTrigger {DATASET_DAG} from its page; Ctrl-C stops Airflow.",
            flush=True,
        )
        while True:
            airflow.check_alive()
            time.sleep(1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks demo`."""
    parser.add_argument("--profile", choices=sorted(SIZES), default="demo", help="demo (minutes) or test (smaller)")
    parser.add_argument(
        "--root", type=Path, default=PROJECT / ".demo", help="folder for all that the demo makes (default: .demo)"
    )
    parser.add_argument("--seed", type=int, default=7, help="of the sample world")
    parser.add_argument("--keep", action="store_true", help="leave Airflow running at the end")
    parser.add_argument("--ui", action="store_true", help="start Airflow on the last demo's folder and wait")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Run the demo; its summary. With --ui: serve the last demo until Ctrl-C.

    Raises:
        DemoFailed, TasksError: a run failed, or Airflow could not be set up.
    """
    root: Path = args.root.resolve()
    try:
        with ended_by_signals():
            if args.ui:
                serve_ui(root)
                return {}
            return run_demo(root, args.profile, args.seed, args.keep)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(0 if args.ui else 130)
