"""Run the whole factory on this machine: two weekly versions of a sample dataset, then one fine-tuning. `make demo`.

    python -m tasks demo [--profile demo|test] [--root .demo] [--seed 7] [--keep]
    python -m tasks demo --ui [--port 8080]         starts Airflow on what the last demo left, until Ctrl-C
    python -m tasks demo --ui --dataset shop --source /data/shop
                                       the same on a dataset of one's own, which is laid out where it is not there yet

Draws the sample world, lays a deployment out (origin, DVC remote, clone) and starts an embedded Airflow. Then it runs
the DAG dataset_refresh on a first batch of images and on a second one, and waits for the bge_vl_finetune run that the
second version's asset event starts. Writes <root>/summary.json and <root>/gallery.html. The code that runs is the
checkout's last commit. The demo talks to Airflow by REST and imports none of it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tasks.demo.local_airflow import PROJECT, LocalAirflow
from tasks.demo.setup import (
    SIZES,
    DemoFailed,
    demo_conf,
    draw_world,
    empty_root,
    finish_benchmark,
    make_deployment,
    start_benchmark,
)
from tasks.demo.summary import TaskRun, count_drops, git_output, read_json, summarize, summary_text
from tasks.demo.watch import DATASET_DAG, MODEL_DAG, Clock, follow_run, wait_for_training
from tasks.errors import ConfigError
from tasks.pages.gallery import with_retrieval
from tasks.publish.published import published_bytes

DATASETS = PROJECT / ".datasets"  # deployments of datasets of one's own; `make clean` leaves them


@dataclass(frozen=True)
class Demo:
    """One demo.

    Attributes:
        root: folder of all that it makes.
        profile: a key of SIZES.
        seed: of the sample world.
    """

    root: Path
    profile: str
    seed: int
    airflow: LocalAirflow
    clock: Clock


def start_airflow(demo: Demo, images: int) -> None:
    """Draw the first batch while Airflow starts, and lay the deployment out."""
    pool = ThreadPoolExecutor(1)
    try:
        drawing = pool.submit(draw_world, demo.root, demo.seed, images, 0)
        demo.airflow.migrate_and_start()
        make_deployment(demo.root)
        files = drawing.result()
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in files.items())
        demo.clock.print(f"the sample world: {sum(files.values()):,} files ({kinds})")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    demo.airflow.wait_healthy((DATASET_DAG, MODEL_DAG))
    demo.airflow.make_pools()
    demo.airflow.set_paused(DATASET_DAG, False)


def require_version(tasks: list[TaskRun]) -> None:
    """Raise DemoFailed when a dataset run ended without a version: there is nothing to train on."""
    if any(task.task_id == "version" and task.state == "skipped" for task in tasks):
        raise DemoFailed(
            f"{DATASET_DAG}: no version was published, so there is nothing to train on. "
            f"What was left out: {json.dumps(count_drops(tasks))}"
        )


def run_weeks(demo: Demo, benchmark: subprocess.Popen[bytes]) -> list[list[TaskRun]]:
    """Two runs of dataset_refresh, a week apart by their dates; the tasks of each.

    Training is paused until the second one, so that the first version starts none.
    """
    size, clock, airflow = SIZES[demo.profile], demo.clock, demo.airflow
    today = datetime.datetime.now(datetime.UTC).date()

    clock.print(f"{DATASET_DAG}, first batch")
    conf = demo_conf(demo.root, demo.profile, today - datetime.timedelta(days=7))
    first = follow_run(airflow, clock, DATASET_DAG, airflow.trigger(DATASET_DAG, conf))
    require_version(first)

    files = draw_world(demo.root, demo.seed, size.second, size.first)
    clock.print(f"a week later: {sum(files.values()):,} more files in the same folder")
    airflow.set_paused(MODEL_DAG, False)
    clock.print(f"{DATASET_DAG}, second batch")
    run_id = airflow.trigger(DATASET_DAG, demo_conf(demo.root, demo.profile, today))
    finish_benchmark(demo.root, benchmark)
    second = follow_run(airflow, clock, DATASET_DAG, run_id)
    require_version(second)
    return [first, second]


def copy_gallery(root: Path, version: str) -> None:
    """The newest version's gallery page as <root>/gallery.html, with the scores of the model that it trained."""
    page = published_bytes(root / "dataset", "reports/gallery.html", f"refs/tags/{version}").decode()
    (root / "gallery.html").write_text(with_retrieval(page, read_json(root / "evaluation.json")), encoding="utf-8")


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that what was started is stopped; so does SIGINT, as ever.

    Python drops an exception that a signal raises inside a callback of a fork (logging's, while a process is started);
    there the interrupt waits for a moment.
    """

    def interrupt(_: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename == logging.__file__:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGALRM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    old = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in old.items():
            signal.signal(number, handler)


def terminate(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs."""
    if process.poll() is None:
        process.terminate()


def run_demo(root: Path, profile: str, seed: int, keep: bool) -> dict[str, Any]:
    """The whole story; returns the summary.

    Args:
        keep: leave Airflow running at the end.
    Raises:
        DemoFailed: a run failed, or no demo made the folder.
        TasksError: Airflow or the deployment could not be set up.
    """
    empty_root(root)
    what = "two weekly versions and one fine-tuning on this machine"
    print(f"MegaPairs: {what}, profile '{profile}', all of it in {root}", flush=True)
    if git_output(PROJECT, "status", "--porcelain", "--untracked-files=no"):
        print("       note: the last commit runs; changes of the checkout that are not committed are left out")
    with contextlib.ExitStack() as stack:
        demo = Demo(root, profile, seed, LocalAirflow(root), Clock())
        if not keep:
            stack.callback(demo.airflow.stop)
        start_airflow(demo, SIZES[profile].first)
        benchmark = start_benchmark(root, SIZES[profile])
        stack.callback(terminate, benchmark)
        user, password = demo.airflow.credentials()
        demo.clock.print(f"Airflow is up: {demo.airflow.url} (user {user}, password {password}, while this runs)")
        weeks = run_weeks(demo, benchmark)
        demo.clock.print(f"{MODEL_DAG}, started by the second version")
        training_id = wait_for_training(demo.airflow)
        training = follow_run(demo.airflow, demo.clock, MODEL_DAG, training_id, root / "evaluation.json")
        summary = summarize(root, weeks, training, demo.clock.seconds())
        if summary["versions"]:
            copy_gallery(root, summary["versions"][-1])
    summary["seconds"]["total"] = round(demo.clock.seconds(), 1)
    (root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(summary_text(summary, Path(os.path.relpath(root))), flush=True)
    return summary


def make_dataset(name: str, source: Path | None, profile: str | None) -> Path:
    """The root of a dataset's deployment, laid out now where it is not there yet.

    Raises:
        DemoFailed: it is not there, and no source was named; or it could not be laid out.
    """
    root = DATASETS / name
    if not (root / "dataset").exists():
        if source is None:
            raise DemoFailed(
                f"dataset {name!r} is not there yet: name its images, `make ui DATASET={name} SOURCE=FOLDER`"
            )
        print(f"laying dataset {name!r} out: its windows are calibrated on {source}", flush=True)
        more = ["--profile", profile] if profile else []
        command = [sys.executable, "-m", "tasks", "new_dataset", name, "--source", str(source.resolve()), *more]
        if subprocess.run(command, cwd=PROJECT, check=False).returncode:
            raise DemoFailed(f"dataset {name!r} could not be laid out; the reason is above")
    return root


def serve_ui(root: Path, port: int | None = None, is_own: bool = False) -> None:
    """Airflow on what the last demo left, or on a dataset of one's own, until Ctrl-C.

    Args:
        root: of the deployment.
        port: of the web UI; a free one where None.
        is_own: whether the deployment is a dataset of one's own, which needs no demo before.
    Raises:
        DemoFailed: there is no demo to show.
    """
    if not is_own and not (root / "airflow" / "airflow.db").exists():
        raise DemoFailed(
            f"{root}: no Airflow to show yet; run `make demo` first, or `make ui DATASET=NAME SOURCE=FOLDER` for "
            "images of your own"
        )
    with LocalAirflow(root, port=port) as airflow:
        print("starting Airflow ...", flush=True)
        airflow.migrate_and_start()
        airflow.wait_healthy((DATASET_DAG, MODEL_DAG))
        airflow.make_pools()
        airflow.set_paused(DATASET_DAG, False)
        user, password = airflow.credentials()
        print(f"\n  {airflow.url}\n  user {user}, password {password}\n", flush=True)
        print(f"Trigger {DATASET_DAG} from its page, with an empty form; Ctrl-C stops Airflow.", flush=True)
        if not os.environ.get("MEGAPAIRS_MAIL_TO"):
            print("Mails: set MEGAPAIRS_MAIL_TO and AIRFLOW_CONN_SMTP_DEFAULT before `make ui`.", flush=True)
        while True:
            airflow.check_alive()
            time.sleep(1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks demo`."""
    parser.add_argument("--profile", help="demo (minutes, the default) or test (smaller); with --dataset: any profile")
    parser.add_argument(
        "--root", type=Path, default=PROJECT / ".demo", help="folder for all that the demo makes (default: .demo)"
    )
    parser.add_argument("--seed", type=int, default=7, help="of the sample world (default 7)")
    parser.add_argument("--keep", action="store_true", help="leave Airflow running at the end")
    parser.add_argument("--ui", action="store_true", help="start Airflow on the last demo's folder and wait")
    parser.add_argument("--dataset", help="with --ui: a dataset of your own, below .datasets/")
    parser.add_argument("--source", type=Path, help="with --dataset: the folder of its images")
    parser.add_argument("--port", type=int, help="with --ui: of the web UI (default: a free one)")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Run the demo; its summary. With --ui: serve the last demo until Ctrl-C.

    Raises:
        DemoFailed, TasksError: a run failed, or Airflow could not be set up.
    """
    root: Path = args.root.resolve()
    try:
        with interrupted_by_signals():
            if args.ui:
                own = make_dataset(args.dataset, args.source, args.profile) if args.dataset else None
                serve_ui(own or root, args.port, is_own=own is not None)
                return {}
            if (profile := args.profile or "demo") not in SIZES:
                raise ConfigError(f"--profile {profile!r}: the demo has sizes for {sorted(SIZES)}; give one of these")
            return run_demo(root, profile, args.seed, args.keep)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(0 if args.ui else 130)
