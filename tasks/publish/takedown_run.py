"""Take images down at once: withdraw them from the newest version and publish the result, without waiting for the week.

    python -m tasks takedown ENTRY ... [--list FILE] [--reason CODE] [--dry-run]

An ENTRY is a line of a takedown list (tasks/fingerprints/takedown_list.py): a SHA-256 of the stored or the source's
file, a perceptual hash, a source_uri, an address, or source:NAME. The entries are added to the deployment's list, so
that no later run takes these images in again. Then a run is opened that reads no source; its stages withdraw what the
lists name, no model is asked, and the version is published. --dry-run says what each entry matches and changes nothing.

Works on the deployment that MEGAPAIRS_DATASET and MEGAPAIRS_RUNS name, as does the field `takedown` of Airflow's form.
Older versions stay as they were published: `python -m tasks purge` is for those. A run that is under way when the
version comes out cannot publish its own, so the command refuses while one works (--now: do it all the same). A
takedown, a purge or a renewal by hand that was cut off holds nobody up: its process held a lock, and is gone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.config import load_params
from tasks.errors import EXIT_CONFIG_ERROR, EXIT_DATA_ERROR, EXIT_NOTHING_TO_DO, ConfigError, DataError, TransientError
from tasks.fingerprints.list_text import decode_text
from tasks.fingerprints.takedown import load_list, match_images
from tasks.fingerprints.takedown_list import DEFAULT_REASON, Entry, Matches, TakedownList, parse_lines
from tasks.locks import EXPIRY_S, RENEW_S, exclusive
from tasks.publish.git import common_dir
from tasks.publish.graph import graph
from tasks.publish.open_run import Deployment, RunRequest, close_run, open_run
from tasks.publish.published import DATA_STAGES
from tasks.publish.retention import OpenRun, list_runs
from tasks.reasons import WITHDRAWAL_REASONS
from tasks.store import Store

BY_HAND = ("takedown__", "purge ", "renew__")  # runs that one process drives from opening to version
DRIVER = "driver"  # the lock that this process holds in its run's worktree
DRIVER_WAIT_S = EXPIRY_S + RENEW_S
RECENT_DAYS = 0.25  # a run in which something has changed so lately is under way, also between two of its tasks
Runner = Callable[[Path, Sequence[str]], int]  # (worktree, words after `python -m tasks`) -> exit code


@dataclass(frozen=True)
class Takedown:
    """What became of a takedown.

    Attributes:
        version: the tag that it published; None where no stored image was named.
        notes: what each entry matched.
    """

    version: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Rewrite:
    """An older version that is withdrawn from: its tag, and the name and date (ISO) of the version in its place."""

    tag: str
    name: str
    date: str


def run_process(worktree: Path, words: Sequence[str]) -> int:
    """Run one command line in the worktree, with the code of the worktree; returns its exit code."""
    return subprocess.run([sys.executable, "-m", "tasks", *words], cwd=worktree, check=False).returncode


def gather_entries(texts: Sequence[str], path: Path | None, reason: str | None) -> list[Entry]:
    """The entries of the command line and of a file.

    Raises:
        ConfigError: there is none, one is not understood, or the file cannot be read.
    """
    entries = parse_lines(texts, "the command line", "takedown") if texts else []
    if path is not None:
        try:
            lines = decode_text(path.read_bytes(), path, "--list")
        except OSError as error:
            raise ConfigError(f"--list: {path} cannot be read ({error.strerror}); give the path of a list") from error
        entries += parse_lines(lines, path.name, "--list")
    if not entries:
        raise ConfigError("takedown: nothing named; expected an ENTRY, or --list FILE; see `takedown --help`")
    if reason is None:
        return entries
    return [replace(entry, reason=reason) if entry.reason == DEFAULT_REASON else entry for entry in entries]


def is_by_hand(run: OpenRun) -> bool:
    """Whether one process drives the run; once that is gone, nothing goes on by itself. Others are Airflow's."""
    return run.run_id.startswith(BY_HAND) or (run.folder / ".run" / "locks" / DRIVER).exists()


def require_no_run(deployment: Deployment, command: str = "takedown") -> None:
    """Raise ConfigError where a run that will publish a version is under way; `command` is what a person started.

    A takedown and a purge do not wait for a run by hand that was cut off: such a run cannot publish after them any more
    (`require_parent`). Another renewal does, for the first one's work would be lost.
    """
    for run in list_runs(deployment.runs, time.time()):
        is_recent = run.idle_days < RECENT_DAYS
        if run.kind != "dataset" or not (run.is_working or is_recent):
            continue
        if run.is_working or not is_by_hand(run):
            raise ConfigError(
                f"{command}: run {run.run_id} is under way, and could not publish its version after this one; wait for "
                "it, close it (`python -m tasks open_run --run-id RUN --close`), or give --now"
            )
        if command == "renew" and run.run_id.startswith("renew__"):
            raise ConfigError(
                f"renew: run {run.run_id} was cut off, and could not publish its version after this one; go on with it "
                f"(`python -m tasks renew ... --run-id {run.run_id}`), close it (`python -m tasks open_run --run-id "
                f"{run.run_id} --close`), or give --now"
            )


@contextmanager
def driving(worktree: Path, run_id: str) -> Iterator[None]:
    """Hold the lock that tells others, for as long as this process lives, that it works on the run.

    It is waited for as long as the lease of a process that was killed may need to expire.

    Raises:
        TransientError: another process drives this run.
    """
    lock = Store(worktree).folder(".run", "locks", DRIVER)
    with exclusive(lock, DRIVER_WAIT_S, f"{run_id}: another process drives this run; wait for it, or end it"):
        yield


def matched_notes(takedown: TakedownList, matches: Matches) -> list[str]:
    """What each entry of a list matches, a sentence each."""
    notes = []
    for number, entry in enumerate(takedown.entries):
        count = sum(of_entry == number for of_entry in matches.entries.values())
        note = f"{entry.where} ({entry.kind} {entry.value[:80]}): {count} images"
        if near := matches.near.get(number):
            hits = ", ".join(f"{hit.image_id} ({hit.bits} bits)" for hit in near[:5])
            note += f"; {len(near)} more resemble it, look at them: {hits}"
        notes.append(note)
    return notes


def open_takedown(
    deployment: Deployment,
    entries: Sequence[Entry],
    run_id: str,
    *,
    is_dry: bool = False,
    rewrite: Rewrite | None = None,
    date: str | None = None,
) -> Path:
    """Open the run of a takedown, or find it again; its worktree. Arguments and errors as of `take_down`."""
    conf: dict[str, Any] = {"takedown": [entry.to_json() for entry in entries], "dry_run": is_dry, "date": date}
    if rewrite is not None:
        conf |= {"batch": rewrite.name, "date": rewrite.date}
    request = RunRequest(run_id, "dataset", conf, rewrite.tag if rewrite else None)
    return Path(open_run(request, deployment).notes[0])


def planned_tag(worktree: Path) -> str:
    """The tag that an open run is to publish."""
    return f"dataset/{load_params(worktree / 'params.yaml').open_run.batch}"


def take_down(
    deployment: Deployment,
    entries: Sequence[Entry],
    run_id: str,
    *,
    is_dry: bool = False,
    run: Runner = run_process,
    rewrite: Rewrite | None = None,
    date: str | None = None,
) -> Takedown:
    """Withdraw what the entries name, and publish. A second call with the same run id goes on where the first stopped.

    Args:
        deployment: where.
        entries: of the takedown list.
        run_id: of the run that is opened.
        is_dry: say what the entries match, and stop.
        run: runs a command line of the run.
        rewrite: an older version to withdraw them from; the newest one when None.
        date: of the run, ISO; today when None.
    Raises:
        ConfigError, DataError, TransientError: as the stage that failed; its worktree stays.
    """
    worktree = open_takedown(deployment, entries, run_id, is_dry=is_dry, rewrite=rewrite, date=date)
    store, params = Store(worktree), load_params(worktree / "params.yaml")
    record, version = worktree / ".run" / "takedown-notes.json", None
    with driving(worktree, run_id):
        takedown = load_list(params, store)
        if takedown is not None and not record.exists():
            notes = matched_notes(takedown, match_images(params, store, takedown))
            store.write_bytes(record, json.dumps(notes).encode())
        notes = json.loads(record.read_text()) if record.exists() else []
        if not is_dry and run_to_version(worktree, run, "takedown", run_id):
            version = f"dataset/{params.open_run.batch}"
    close_run(worktree, deployment.clone)
    return Takedown(version, tuple(notes))


def run_to_version(worktree: Path, run: Runner, command: str, run_id: str) -> bool:
    """Run all data stages of a run that a person started, then `version`; returns whether it published one.

    Args:
        worktree: of the run.
        run: runs a command line of the run.
        command: that started it, for messages.
        run_id: of the run.
    Raises:
        ConfigError, DataError, TransientError: as the stage that failed.
    """
    stages = [node.cmd.split()[3:] for node in graph(worktree) if node.name.partition("@")[0] in DATA_STAGES]
    for words in [*stages, ["version"]]:
        code = run(worktree, words)
        if code == EXIT_NOTHING_TO_DO and words == ["version"]:
            return False
        _require_success(code, words, command, run_id)
    return True


def _require_success(code: int, words: Sequence[str], command: str, run_id: str) -> None:
    if code == 0:
        return
    kinds: dict[int, type[ConfigError | DataError | TransientError]] = {
        EXIT_CONFIG_ERROR: ConfigError,
        EXIT_DATA_ERROR: DataError,
    }
    raise kinds.get(code, TransientError)(
        f"{command}: `{' '.join(words)}` ended with exit code {code}, see above; mend the cause, then go on with "
        f"`python -m tasks {command} --run-id {run_id} ...`"
    )


def add_entry_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    """Arguments that name images; `verb`: what is done to them."""
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help=f"what to {verb}, as a line of a takedown list")
    parser.add_argument("--list", type=Path, metavar="FILE", help=f"{verb} what this list names")
    parser.add_argument("--reason", choices=sorted(WITHDRAWAL_REASONS), help="published beside the withdrawn ids")


def add_run_arguments(parser: argparse.ArgumentParser, run: str) -> None:
    """Arguments of a run by hand; `run`: what it is called."""
    parser.add_argument("--date", metavar="YYYY-MM-DD", help="of the version (default: today)")
    parser.add_argument("--now", action="store_true", help="also while another run is under way")
    parser.add_argument("--run-id", help=f"go on with a {run} that was cut off")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks takedown`."""
    add_entry_arguments(parser, "take down")
    parser.add_argument("--dry-run", action="store_true", help="say what the entries match, change nothing")
    add_run_arguments(parser, "takedown")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Take down; {"version": tag or None, "matches": sentences}.

    Raises:
        ConfigError: nothing is named, an entry is not understood, or another run is under way.
    """
    entries = gather_entries(args.entries, args.list, args.reason)
    deployment = Deployment.from_environment()
    deployment = replace(deployment, clone=common_dir(deployment.clone).parent)
    if not (args.now or args.dry_run or args.run_id):
        require_no_run(deployment)
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    run_id = args.run_id or f"takedown__{started}"
    done = take_down(deployment, entries, run_id, is_dry=args.dry_run, date=args.date)
    for note in done.notes:
        print(f"  {note}")
    if done.version:
        print(f"published {done.version}; older versions still hold the images: `python -m tasks purge --help`")
    elif not args.dry_run:
        print("no stored image is named: no version; the entries stand in the deployment's takedown list")
    return {"version": done.version, "matches": list(done.notes)}
