"""The runs that are open, and what old runs left behind: list it, and remove what nothing needs.

    python -m tasks runs                      each run's worktree: kind, version, age, size, whether it works now
    python -m tasks runs --prune              what would be removed; nothing is
    python -m tasks runs --prune --yes        remove it, and say what was freed

Works on the deployment that MEGAPAIRS_DATASET and MEGAPAIRS_RUNS name. Removed are: worktrees in which no process works
and nothing has changed for --keep-days (a failed run that nobody cleared); objects of the DVC cache that no version, no
open run and no branch of origin needs, and only while no run works; replies of models older than --keep-replies-days;
log files below --logs older than --keep-logs-days. A run that works, or that --active names, stays however old it is.
Origin and the DVC remote are never touched, so a version can always be pulled again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError
from tasks.locks import is_held
from tasks.models.llm.request_cache import cache_folder, prune_cache
from tasks.names import slug
from tasks.publish.garbage import collect
from tasks.publish.git import common_dir
from tasks.publish.open_run import MARKER, Deployment, close_run

DAY_S = 86_400.0


@dataclass(frozen=True)
class OpenRun:
    """A run's worktree.

    Attributes:
        folder: the worktree.
        run_id: Airflow's run id; the folder's name where its making was cut off.
        kind: dataset, model, or empty where its making was cut off.
        version: the name that it will publish; empty as before.
        idle_days: since the newest change of any of its files, days.
        size_bytes: of all its files; what is hard-linked from the DVC cache counts too.
        is_working: a process holds one of its locks.
    """

    folder: Path
    run_id: str
    kind: str
    version: str
    idle_days: float
    size_bytes: int
    is_working: bool


@dataclass(frozen=True)
class Retention:
    """How long what is kept, days; `active` are run ids that stay in any case."""

    worktrees_days: float
    replies_days: float
    logs_days: float
    active: tuple[str, ...] = ()


@dataclass(frozen=True)
class Freed:
    """What was, or would be, removed: its kind, a count, and bytes."""

    kind: str
    count: int
    size_bytes: int

    def line(self) -> str:
        """As a person reads it."""
        return f"  {self.kind:<14}{self.count:>8}  {self.size_bytes / 1e6:.1f} MB"


def files_below(folder: Path) -> list[Path]:
    """All files below a folder; none where there is no folder."""
    return [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()] if folder.is_dir() else []


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(p.stat().st_size for p in files_below(folder))


def list_runs(runs: Path, now: float) -> list[OpenRun]:
    """Every worktree below `runs`, the longest idle first.

    Args:
        runs: MEGAPAIRS_RUNS.
        now: seconds since the epoch.
    """
    found = []
    for folder in sorted(p for p in runs.iterdir() if p.is_dir()) if runs.is_dir() else []:
        marker = folder / MARKER
        opened = json.loads(marker.read_text()) if marker.exists() else {}
        states = [p.stat() for p in files_below(folder)]
        newest = max((s.st_mtime for s in states), default=folder.stat().st_mtime)
        locks = [p for p in (folder / ".run" / "locks").glob("*") if ".lease-" not in p.name]
        found.append(
            OpenRun(
                folder,
                str(opened.get("run_id", folder.name)),
                str(opened.get("kind", "")),
                str(opened.get("batch", "")),
                max(0.0, now - newest) / DAY_S,
                sum(s.st_size for s in states),
                any(is_held(lock) for lock in locks),
            )
        )
    return sorted(found, key=lambda run: -run.idle_days)


def unneeded_runs(runs: Iterable[OpenRun], keep: Retention) -> list[OpenRun]:
    """The runs whose worktrees may go."""
    return [run for run in runs if not is_active(run, keep) and run.idle_days > keep.worktrees_days]


def is_active(run: OpenRun, keep: Retention) -> bool:
    """Whether a process works in the run, or the caller named it."""
    return run.is_working or run.run_id in keep.active or run.folder.name in {slug(run_id) for run_id in keep.active}


def prune_worktrees(runs: Sequence[OpenRun], clone: Path, is_dry: bool) -> Freed:
    """Remove worktrees; each is looked at again before it goes."""
    size = 0
    for run in runs:
        if not is_dry:
            close_run(run.folder, clone)
        size += run.size_bytes
    return Freed("worktrees", len(runs), size)


def prune_dvc_cache(clone: Path, open_runs: Sequence[Path], is_dry: bool) -> Freed:
    """Remove objects of the DVC cache that nothing needs, as `python -m tasks gc` does (tasks/publish/garbage.py).

    Raises:
        TransientError: origin cannot be asked for its versions.
    """
    found, _ = collect(clone, open_runs, in_remote=False, is_dry=is_dry)
    return Freed("DVC cache", found[0].objects, found[0].size_bytes)


def prune_replies(clone: Path, days: float, now: float, is_dry: bool) -> Freed:
    """Remove kept replies of models that are older than `days`."""
    folder = cache_folder(clone)
    if folder is None:
        return Freed("replies", 0, 0)
    pruned = prune_cache(folder, max_age_days=days, now_s=now, is_dry=is_dry)
    return Freed("replies", pruned.files, pruned.size_bytes)


def prune_logs(folder: Path | None, days: float, now: float, is_dry: bool) -> Freed:
    """Remove log files that nothing has written to for `days`, and folders that are empty then."""
    old = [p for p in files_below(folder) if now - p.stat().st_mtime > days * DAY_S] if folder else []
    size = sum(p.stat().st_size for p in old)
    for path in [] if is_dry else old:
        path.unlink(missing_ok=True)
    for path in sorted({p for f in old for p in f.parents}, key=lambda p: -len(p.parts)) if not is_dry else []:
        if folder in path.parents and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return Freed("logs", len(old), size)


def prune(deployment: Deployment, keep: Retention, logs: Path | None, is_dry: bool) -> list[Freed]:
    """Remove what nothing needs, or say what that would be."""
    now = time.time()
    clone = common_dir(deployment.clone).parent
    runs = list_runs(deployment.runs, now)
    unneeded = unneeded_runs(runs, keep)
    freed = [prune_worktrees(unneeded, clone, is_dry)]
    kept = [run for run in runs if run not in unneeded]
    if any(is_active(run, keep) for run in kept):
        print("  DVC cache     left as it is: a run works")
    else:
        freed.append(prune_dvc_cache(clone, [run.folder for run in kept if run.kind], is_dry))
    freed.append(prune_replies(clone, keep.replies_days, now, is_dry))
    freed.append(prune_logs(logs, keep.logs_days, now, is_dry))
    return freed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks runs`."""
    parser.add_argument("--prune", action="store_true", help="say what can be removed")
    parser.add_argument("--yes", action="store_true", help="with --prune: remove it")
    parser.add_argument("--keep-days", type=float, default=14.0, help="idle worktrees stay so long, days (14)")
    parser.add_argument("--keep-replies-days", type=float, default=180.0, help="replies of models, days (180)")
    parser.add_argument("--keep-logs-days", type=float, default=60.0, help="log files, days (60)")
    parser.add_argument("--logs", type=Path, help="folder of Airflow's logs; left alone when not given")
    parser.add_argument("--active", action="append", default=[], metavar="RUN_ID", help="a run that stays; repeatable")


def run_command(args: argparse.Namespace) -> Mapping[str, Any]:
    """List the runs, or prune.

    Raises:
        ConfigError: --yes without --prune, or a number of days below 0.
    """
    if args.yes and not args.prune:
        raise ConfigError("--yes: expected together with --prune; alone it would remove nothing")
    days = (args.keep_days, args.keep_replies_days, args.keep_logs_days)
    if min(days) < 0:
        raise ConfigError(f"--keep-*: found {min(days)}; expected days, 0 or more")
    deployment = Deployment.from_environment()
    runs = list_runs(deployment.runs, time.time())
    print(f"{len(runs)} open runs below {deployment.runs}")
    for run in runs:
        state = "works now" if run.is_working else f"idle for {run.idle_days:.1f} days"
        what = f"{run.kind or 'cut off'} {run.version}".strip()
        print(f"  {run.run_id}: {what}, {state}, {run.size_bytes / 1e6:.1f} MB")
    result: dict[str, Any] = {"stage": "runs", "runs": [{**vars(run), "folder": str(run.folder)} for run in runs]}
    if args.prune:
        freed = prune(deployment, Retention(*days, active=tuple(args.active)), args.logs, not args.yes)
        print("freed:" if args.yes else "would be freed (--yes does it):")
        for item in freed:
            print(item.line())
        result["freed" if args.yes else "would_free"] = [vars(item) for item in freed]
    return result
