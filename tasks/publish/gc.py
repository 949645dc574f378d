"""Remove data that no version needs, and keep all that one does.

    python -m tasks gc                    what would go from the deployment's DVC cache; nothing is removed
    python -m tasks gc --yes              remove it
    python -m tasks gc --remote [--yes]   from the DVC remote too

`dvc gc` keeps what the checked-out branch names, and a deployment's clone stands on `main`, which names no data: it
would remove every version. This command first fetches origin's tags, then keeps the objects of every tag, of the tip
of every branch of origin, and of every open run. It removes nothing where the remote lacks an object that is needed,
and refuses to work while a run does: that run may just be writing objects that nothing names yet.

It knows the versions of this deployment alone: not for a remote or a cache that another deployment shares.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

from tasks.errors import ConfigError
from tasks.publish.garbage import Garbage, collect
from tasks.publish.git import common_dir
from tasks.publish.open_run import Deployment
from tasks.publish.retention import list_runs


def collect_garbage(deployment: Deployment, *, in_remote: bool, is_dry: bool) -> tuple[list[Garbage], int]:
    """Find the objects that nothing needs, and remove them unless `is_dry`; (they, the count of needed ones).

    Raises:
        ConfigError: a run works.
        DataError: a needed object is missing; nothing is removed then, for something else is wrong.
    """
    clone = deployment.clone
    runs = [run for run in list_runs(deployment.runs, time.time()) if run.kind]
    if busy := [run.run_id for run in runs if run.is_working]:
        raise ConfigError(f"gc: run {busy[0]} works, and may be writing objects that nothing names yet; wait for it")
    return collect(clone, [run.folder for run in runs], in_remote=in_remote, is_dry=is_dry)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks gc`."""
    parser.add_argument("--yes", action="store_true", help="remove what was found")
    parser.add_argument("--remote", action="store_true", help="look in the DVC remote too")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Find and remove garbage; {"kept", "garbage": [{"where", "objects", "size_bytes"}], "is_removed"}."""
    deployment = Deployment.from_environment()
    deployment = replace(deployment, clone=common_dir(deployment.clone).parent)
    found, kept = collect_garbage(deployment, in_remote=args.remote, is_dry=not args.yes)
    print(f"{kept} objects are needed by a tag, a branch or an open run, and stay")
    for item in found:
        print(f"  {item.where:<8}{item.objects:>8} objects, {item.size_bytes / 1e6:.1f} MB")
    print("removed" if args.yes else "would be removed (--yes does it)")
    return {"kept": kept, "garbage": [item._asdict() for item in found], "is_removed": args.yes}
