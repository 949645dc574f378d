"""The one command line of the factory: `python -m tasks <command>`; `python -m tasks --help` lists the commands.

A command is one row of COMMANDS (tasks/commands.py). A stage works in a run's worktree (the current folder, or --root)
and prints its StageReport as JSON in the last line; the same line runs in a terminal, under `dvc repro` and inside an
Airflow task. Errors go to stderr as one sentence; the exit code says what to do next (tasks/errors.py). With --json,
standard output is one JSON object and nothing else: the report, the result, or {"error", "message"}.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import difflib
import importlib
import importlib.util
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tasks.commands import COMMANDS, DETACHABLE
from tasks.errors import ConfigError, NothingToDo, TasksError
from tasks.records import StageReport

if TYPE_CHECKING:
    from tasks.config import Params

DASHED = ("new-dataset", "push-hub", "export-onnx")  # may be written so
Result = StageReport | Mapping[str, Any] | None


# --- help ---------------------------------------------------------------------------------------------------------


def overview() -> str:
    """The text of `python -m tasks --help`: the commands by group, in the order in which the factory works."""
    lines = [
        "usage: python -m tasks <command> [arguments]",
        "",
        "MegaPairs factory: composed-image-retrieval triplets.",
    ]
    group = None
    for name, command in COMMANDS.items():
        if command.group != group:
            group = command.group
            lines += ["", group]
        lines.append(f"  {name:<14}{command.summary}")
    lines += [
        "",
        "`python -m tasks <command> --help` shows a command's manual, its options and an example.",
        "--json prints one JSON object alone.",
        "Exit codes: 0 done, 65 wrong data, 75 try again, 78 wrong parameter, 99 nothing to do;",
        "of a remote: 69 it does not answer, 72 a package is missing, 77 it wants credentials.",
    ]
    return "\n".join(lines)


def manual(module: str) -> str:
    """A module's docstring, read from its file: importing a stage would load torch for a help text."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def command_parser(name: str) -> argparse.ArgumentParser:
    """The arguments of one command."""
    command = COMMANDS[name]
    line = f"python -m tasks {name}"
    parser = argparse.ArgumentParser(
        prog=line,
        description="\n\n".join(manual(module) for module in (command.module, command.alone) if module),
        epilog=f"example:\n  {line} {command.example}".rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if command.kind != "stage":
        module = importlib.import_module(command.module)
        if hasattr(module, "add_arguments"):
            module.add_arguments(parser)
    else:
        # every stage parses both: run_stage refuses a wrong use of them with a sentence and exit code 78
        items = {"encoder": "semantic, pattern or caption", "table": "images, pairs or triplets"}
        item_help = items[command.item] if command.item else argparse.SUPPRESS
        parser.add_argument("item", nargs="?", metavar=(command.item or "item").upper(), help=item_help)
        part_help = "the i-th of n parts, 1-based; the whole when left out"
        parser.add_argument("--part", metavar="I/N", help=part_help if command.takes_part else argparse.SUPPRESS)
        if command.alone:
            importlib.import_module(command.alone).add_arguments(parser)
    if command.kind != "tool":
        parser.add_argument("--root", default=".", type=Path, help="the run's worktree (default: the current folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, all else on stderr")
    return parser


# --- running --------------------------------------------------------------------------------------------------------


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


def hide_memory() -> None:
    """On Linux, keep other processes of the same user from reading this one's memory and environment.

    Ingest holds the keys of buckets, and starts processes that decode untrusted files.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def companion_of(params: Params, encoder: str | None) -> str | None:
    """The encoder that a stage does beside another one; None where none is configured."""
    from tasks.config import COMPANIONS

    companion = COMPANIONS.get(encoder or "")
    is_its_own_stage = "DVC_STAGE" in os.environ  # `dvc repro` runs each encoder as a stage of its own
    return companion if companion in params.embed.encoders and not is_its_own_stage else None


def merge_companion(report: StageReport, companion: StageReport) -> StageReport:
    """An encoder's report with what was done for its companion: notes say so; rows, drops and figures stay the
    encoder's, because both read the same images.
    """
    dropped = "".join(f", {count} {reason}" for reason, count in companion.dropped.items() if count)
    report.notes += [f"encoder words beside it: {companion.written} rows written{dropped}", *companion.notes]
    return report


def run_stage(stage: str, item: str | None, part: str | None, root: Path) -> StageReport:
    """Check the arguments, hold the part's lock, run the stage and keep its report and its cost.

    Raises:
        ConfigError: an item or a part that is missing, or that the stage does not take.
        TransientError: another process has worked on this part for longer than MEGAPAIRS_LOCK_WAIT_S.
    """
    from tasks.config import load_params
    from tasks.locks import exclusive, lock_wait_s
    from tasks.meter import Meter
    from tasks.parts import parts_after
    from tasks.progress import kept_in
    from tasks.renewal.encoders import with_moved_encoders
    from tasks.store import Store

    command = COMMANDS[stage]
    if (item is not None) != (command.item is not None):
        wanted = f"one argument, the {command.item}" if command.item else "no argument"
        raise ConfigError(f"{stage}: expected {wanted}, found {item!r}; see `python -m tasks {stage} --help`")
    parsed = parse_part(part)
    if parsed and not command.takes_part:
        raise ConfigError(f"{stage}: works on the whole; leave --part out")
    params = load_params(root / "params.yaml", os.environ.get("MEGAPAIRS_PROFILE"))
    store = Store(root)
    params = with_moved_encoders(params, store)
    name = "@".join(x for x in (stage, item, part.replace("/", "-of-") if part else None) if x)
    keywords: dict[str, Any] = {command.item: item} if command.item else {}
    if command.takes_part:
        keywords["part"] = parsed
    # of several processes that torchrun started (train): they share the work, not the lock
    rank = os.environ.get("RANK")
    lock, wait_s = root / ".run" / "locks" / (f"{name}.rank{rank}" if rank else name), lock_wait_s()
    problem = f"{lock}: another process works on this part, and has for {wait_s:.0f} s; end it, then run again"
    with exclusive(lock, wait_s, problem):
        start, meter = time.monotonic(), Meter()
        with kept_in(root / ".run" / "progress" / f"{name}.json"):
            report: StageReport = importlib.import_module(command.module).run(params, store, **keywords)
            if command.item == "encoder" and (companion := companion_of(params, item)):
                keywords["encoder"] = companion
                report = merge_companion(report, importlib.import_module(command.module).run(params, store, **keywords))
        if under_dvc := os.environ.get("DVC_STAGE"):  # `dvc repro` is running this stage
            importlib.import_module("tasks.publish.graph").make_output_folders(root, [under_dvc.rpartition(":")[2]])
        report.part = "@".join(x for x in (item, part) if x)
        report.parts |= parts_after(stage, item, params, store)
        report.seconds = round(time.monotonic() - start, 3)
        if not rank or rank == "0":
            store.write_report(report)
        costs = root / ".run" / "costs" / f"{name}.json"
        earlier = json.loads(costs.read_text()) if costs.exists() else None
        store.write_bytes(costs, (json.dumps(meter.cost(earlier)) + "\n").encode())
        return report


def run_check(name: str, arguments: dict[str, Any]) -> StageReport:
    """Run a check over the worktree and print its notes; nothing is saved."""
    from tasks.config import load_params
    from tasks.renewal.encoders import with_moved_encoders
    from tasks.store import Store

    root = arguments.pop("root")
    store = Store(root)
    params = with_moved_encoders(load_params(root / "params.yaml", os.environ.get("MEGAPAIRS_PROFILE")), store)
    report: StageReport = importlib.import_module(COMMANDS[name].module).run(params, store, **arguments)
    for note in report.notes:
        print(note)
    return report


def run_parsed(name: str, args: argparse.Namespace) -> Result:
    """Run a command with its parsed arguments."""
    kind, module, alone = COMMANDS[name].kind, COMMANDS[name].module, COMMANDS[name].alone
    if alone and importlib.import_module(alone).is_asked(args):
        kind, module = "tool", alone
    if kind == "stage":
        return run_stage(name, args.item, args.part, args.root)
    if kind == "check":
        return run_check(name, {key: value for key, value in vars(args).items() if key != "json"})
    result: Result = importlib.import_module(module).run_command(args)
    return result


def report_line(report: StageReport) -> str:
    """A report's counts as a person reads them."""
    dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(report.dropped.items())) or "none"
    counts = f"read {report.read}, written {report.written}, dropped: {dropped}"
    work = f"new {report.new}, done {report.done}, reused {report.reused}"
    return f"{report.stage} {report.part}".strip() + f": {counts}, {work}, {report.seconds:.1f} s"


@contextmanager
def stdout_on_stderr() -> Iterator[None]:
    """Send all that is written to standard output to standard error, by child processes too."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 1)
        os.close(saved)


def run_and_print(name: str, args: argparse.Namespace) -> int:
    """Run a command, print its result or its error; returns the exit code."""
    failure: TasksError | None = None
    result: Result = None
    with stdout_on_stderr() if args.json else nullcontext():
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
        logging.getLogger("tasks").setLevel(logging.INFO)  # without the log lines of libraries
        try:
            result = run_parsed(name, args)
        except NothingToDo as end:
            print(f"{name}: {end}", flush=True)
            result, failure = StageReport(name, notes=[str(end)]), end
        except TasksError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failure = error
        if isinstance(result, StageReport) and failure is None and os.environ.get("RANK", "0") == "0":
            print(report_line(result))
    if os.environ.get("RANK", "0") != "0":
        return failure.exit_code if failure else 0  # of several processes, the first one reports
    if isinstance(result, StageReport):
        print(json.dumps(json.loads(result.to_json())), flush=True)  # ASCII, for logs of any encoding
    elif args.json:
        problem = {"error": type(failure).__name__, "message": str(failure)} if failure else None
        print(json.dumps(problem or result or {}), flush=True)
    return failure.exit_code if failure else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name = arguments[0].replace("-", "_") if arguments[0] in DASHED else arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=3)
        meant = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        error = ConfigError(f"command line: unknown command {name!r}; {meant}`python -m tasks --help` lists all")
        print(f"ConfigError: {error}", file=sys.stderr)
        return error.exit_code
    return run_and_print(name, command_parser(name).parse_args(arguments[1:]))


def run_old_spelling(name: str) -> NoReturn:
    """Run `python -m tasks.<name>`, the spelling of releases before 0.2, as `python -m tasks <name>`."""
    print(
        f"note: `python -m tasks.{name}` is now `python -m tasks {name}`; the old spelling goes in the next release",
        file=sys.stderr,
    )
    sys.exit(main([name, *sys.argv[1:]]))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] not in DETACHABLE:
        die_with_parent()
    if sys.argv[1:2] == ["ingest"]:
        hide_memory()
    sys.exit(main())
