"""Run one stage: ``python -m tasks <stage> [item] [--part i/n]``.

The same line runs in a terminal, under ``dvc repro`` and inside an Airflow task. The current folder is the run's
worktree. The last line printed is the StageReport as JSON; the exit code says what to do next (tasks/errors.py).

    item        the encoder of embed and mine (semantic, pattern, caption), the table of validate (images, pairs, triplets)
    --part i/n  the i-th of n parts, 1-based (caption, judge, embed, mine); leave out for the whole

No stages: `calibrate [--source FOLDER]` proposes the encoders' windows (tasks/calibrate/command.py), `plan [pairs]`
says what captioning and judging will cost, `judge_check` judges the judge.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import importlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.config import load_params
from tasks.errors import ConfigError, NothingToDo, TasksError, TransientError
from tasks.meter import Meter
from tasks.records import StageReport
from tasks.store import Store

# stage -> what its item is, and whether it takes a part. Each stage is run(params, store, ...) of its module in
# MODULES.
STAGES: dict[str, tuple[str | None, bool]] = {
    "ingest": (None, False),
    "recaption": (None, False),
    "embed": ("encoder", True),
    "mine": ("encoder", True),
    "select": (None, False),
    "caption": (None, True),
    "judge": (None, True),
    "validate": ("table", False),
    "version": (None, False),
    "train": (None, False),
    "evaluate": (None, False),
    "promote": (None, False),
    "noise": (None, False),
}
MODULES = {
    "ingest": "tasks.ingest.stage",
    "recaption": "tasks.caption.recaption",
    "embed": "tasks.embed.stage",
    "mine": "tasks.mine.stage",
    "select": "tasks.select.stage",
    "caption": "tasks.caption.stage",
    "judge": "tasks.judge.stage",
    "validate": "tasks.validate.stage",
    "version": "tasks.publish.version",
    "train": "tasks.train.stage",
    "evaluate": "tasks.evaluate.stage",
    "promote": "tasks.promote.stage",
    "noise": "tasks.promote.seed_noise",
    "plan": "tasks.caption.plan",
    "judge_check": "tasks.judge.judge_check",
}


def parse_part(text: str | None) -> tuple[int, int] | None:
    """'2/4' -> (2, 4); None stays None.

    Raises:
        ConfigError: not of the form i/n with 1 <= i <= n.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part {text!r}: expected i/n with 1 <= i <= n, for example 1/4")
    return int(match[1]), int(match[2])


def die_with_parent() -> None:
    """On Linux, get SIGTERM when the parent dies: a task that is killed must not leave a second writer behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file or raise TransientError: one writer per stage and part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransientError(
                f"{path}: another process works on this part; wait for it, or end it, then run again"
            ) from None
        yield


def run_stage(stage: str, item: str | None, part: str | None, root: Path) -> StageReport:
    """Check the arguments, hold the part's lock, run the stage and keep its report."""
    wants_item, takes_part = STAGES[stage]
    if (item is not None) != (wants_item is not None):
        raise ConfigError(
            f"{stage}: expected {'one argument, the ' + wants_item if wants_item else 'no argument'}, found {item!r}"
        )
    parsed = parse_part(part)
    if parsed and not takes_part:
        raise ConfigError(f"{stage}: works on the whole; leave --part out")
    params = load_params(root / "params.yaml", os.environ.get("MEGAPAIRS_PROFILE"))
    store = Store(root)
    name = "@".join(x for x in (stage, item, part.replace("/", "-of-") if part else None) if x)
    keywords: dict[str, Any] = {wants_item: item} if wants_item else {}
    if takes_part:
        keywords["part"] = parsed
    # one of several processes that torchrun started (train); they share the work, not the lock
    if rank := os.environ.get("RANK"):
        name += f".rank{rank}"
    with exclusive(root / ".run" / "locks" / name):
        start, meter = time.monotonic(), Meter()
        report: StageReport = importlib.import_module(MODULES[stage]).run(params, store, **keywords)
        report.part = "@".join(x for x in (item, part) if x)
        report.seconds = round(time.monotonic() - start, 3)
        if not rank or rank == "0":
            store.write_report(report)
        costs = root / ".run" / "costs" / f"{name.partition('.rank')[0]}.json"
        earlier = json.loads(costs.read_text()) if costs.exists() else None
        store.write_bytes(costs, (json.dumps(meter.cost(earlier)) + "\n").encode())
    return report


def look(name: str, root: Path, more: dict[str, Any]) -> StageReport:
    """Run tasks.<name> over the worktree, print its notes; nothing is kept."""
    params = load_params(root / "params.yaml", os.environ.get("MEGAPAIRS_PROFILE"))
    report: StageReport = importlib.import_module(MODULES[name]).run(params, Store(root), **more)
    for note in report.notes:
        print(note)
    return report


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("tasks").setLevel(logging.INFO)  # libraries' chatter would bury what a stage says
    # no stage: it proposes windows, before a run or between two stages, and leaves no report
    if argv[:1] == ["calibrate"]:
        from tasks.calibrate import command as calibrate

        return calibrate.main(argv[1:])
    # the one stage with arguments of its own: it makes the worktree that the others run in
    if argv[:1] == ["open_run"]:
        from tasks.publish import open_run

        command = lambda: open_run.main(argv[1:])  # noqa: E731
    elif argv[:1] == ["decontaminate"]:  # no stage: it makes a list that ingest reads
        from tasks.ingest import decontaminate

        command = lambda: decontaminate.main(argv[1:])  # noqa: E731
    elif argv[:1] in (["plan"], ["judge_check"]):  # no stages: they look, and leave no report
        parser = argparse.ArgumentParser(prog=f"python -m tasks {argv[0]}")
        parser.add_argument("--root", default=".", type=Path, help="the run's worktree (default: the current folder)")
        if argv[0] == "plan":
            parser.add_argument(
                "pairs", nargs="?", type=int, help="pairs to plan for, a count; the batch's when left out"
            )
        args = parser.parse_args(argv[1:])
        more = {"pairs": args.pairs} if argv[0] == "plan" else {}
        command = lambda: look(argv[0], args.root, more)  # noqa: E731
    else:
        parser = argparse.ArgumentParser(
            prog="python -m tasks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("stage", choices=["open_run", *STAGES])
        parser.add_argument("item", nargs="?")
        parser.add_argument("--part")
        parser.add_argument("--root", default=".", type=Path, help="the run's worktree (default: the current folder)")
        args = parser.parse_args(argv)
        command = lambda: run_stage(args.stage, args.item, args.part, args.root)  # noqa: E731
    try:
        report = command()
    except NothingToDo as end:
        print(f"{argv[0]}: {end}", flush=True)
        print(StageReport(argv[0], notes=[str(end)]).to_json(), flush=True)
        return end.exit_code
    except TasksError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    if os.environ.get("RANK", "0") != "0":
        return 0  # the first of several processes speaks for all
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(report.dropped.items())) or "none"
    counts = f"read {report.read}, written {report.written}, dropped: {dropped}, new {report.new}, done {report.done}, reused {report.reused}"
    print(f"{report.stage} {report.part}".strip() + f": {counts}, {report.seconds:.1f} s")
    print(json.dumps(json.loads(report.to_json())), flush=True)
    return 0


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main())
