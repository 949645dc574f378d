"""Pull a version's data: `dvc pull` that names each file which the remote did not deliver as it was published.

    python -m tasks pull [-j JOBS] [-r REMOTE] [-f] [TARGET ...]        in a clone of the dataset

Plain `dvc pull` refuses an altered object too (the remote is verified), but its message names the folder only; and an
altered list of a folder's files (DVC's .dir object) passes with exit 0. This command runs DVC unchanged, then looks
which objects of the version the cache lacks: DVC keeps none that failed its check. Exit 0: every object came in with
its own hash; 65: files that did not, by name; else DVC's own code. `python -m tasks verify` finds what was changed in
the clone itself.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, DataError
from tasks.publish.verify import undelivered

FAULTS_SHOWN = 50


def dvc_command() -> list[str]:
    """DVC of this interpreter, else the one on PATH."""
    if importlib.util.find_spec("dvc"):
        return [sys.executable, "-m", "dvc"]
    if path := shutil.which("dvc"):
        return [path]
    raise ConfigError("dvc: not found; `pip install dvc` (with `dvc[s3]` for an s3:// remote)")


def pull(root: Path, options: Sequence[str] = (), targets: Sequence[str] = ()) -> int:
    """Run `dvc pull`, its output beside ours; returns its exit code.

    Args:
        options: of `dvc pull`.
        targets: files and folders to bring in; none means all.
    Raises:
        DataError: names the files that the remote did not deliver as they were published.
        ConfigError: no DVC, or no clone of a dataset here.
    """
    if not (root / "dvc.lock").exists():
        raise ConfigError(f"{root / 'dvc.lock'}: missing; run this in a clone of the dataset's branch")
    dvc = dvc_command()
    code = subprocess.run([*dvc, "pull", *options, *targets], cwd=root, check=False).returncode
    cache = subprocess.run([*dvc, "cache", "dir"], cwd=root, check=True, text=True, capture_output=True).stdout.strip()
    wanted = [Path(t) for t in targets] or [Path()]
    faults = [f for f in undelivered(root, Path(cache)) if any(Path(f.path).is_relative_to(t) for t in wanted)]
    if faults:
        lines = [str(fault) for fault in faults[:FAULTS_SHOWN]]
        if len(faults) > FAULTS_SHOWN:
            lines.append(f"and {len(faults) - FAULTS_SHOWN} more")
        raise DataError(f"files that did not come as they were published: {len(faults)}\n  " + "\n  ".join(lines))
    return code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks pull`."""
    parser.add_argument("-j", "--jobs", help="downloads at a time, a count")
    parser.add_argument("-r", "--remote", help="another remote of the DVC configuration")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files changed here")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="files and folders to bring in; none means all")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Pull in the current folder; {"targets": files and folders}. DVC's own failure ends with DVC's exit code."""
    options = [
        *(["-j", args.jobs] if args.jobs else []),
        *(["-r", args.remote] if args.remote else []),
        *(["-f"] if args.force else []),
    ]
    if code := pull(Path("."), options, args.targets):
        sys.exit(code)
    return {"targets": args.targets or ["."]}
