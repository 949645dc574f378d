"""Audit: does the DVC remote still hold every object of every published version and model?

    python -m tasks audit [--root CLONE] [-r REMOTE] [--contents] [TAG ...]

Reads the tags `dataset/*`, `model/*` and `noise/*` of a clone (the deployment's, or anybody's), or those that are
named, and asks the remote for each object that they need; the files of a clone are not looked at (`python -m tasks
verify` does). With --contents each object is also read and compared with its hash, which takes as long as downloading.
Exit 0: every tag can be pulled; 65: names the files that cannot, by tag; 69: the remote does not answer; 72: a package
is missing; 77: it wants credentials.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, DataError
from tasks.publish.git import tags
from tasks.publish.published import cache_dir
from tasks.publish.purge_record import purged_objects
from tasks.publish.remote import Lost, Remote, folder_list, lost_objects, object_path, open_remote, outputs_at

KINDS = ("dataset", "model", "noise")
LINES = 50  # of the error


def altered_objects(root: Path, tag: str, remote: Remote, known: dict[str, bool]) -> list[Lost]:
    """Objects of a tag whose content is not what their name says.

    Args:
        known: object -> whether it is right; what other tags share is not read again.
    """
    cache, wanted = cache_dir(root), {}
    for output in outputs_at(root, f"refs/tags/{tag}"):
        wanted[output.md5] = output.path
        if output.md5.endswith(".dir"):
            entries = folder_list(output.md5, cache, remote) or ()
            wanted |= {md5: f"{output.path}/{name}" for name, md5 in entries}
    for md5 in wanted:
        if md5 not in known:
            known[md5] = remote.has_hash(md5)
    return sorted(Lost(path, object_path(md5)) for md5, path in wanted.items() if not known[md5])


def audit(
    root: Path, names: Sequence[str] = (), *, remote_name: str | None = None, with_contents: bool = False
) -> dict[str, dict[str, Any]]:
    """tag -> {"objects": count, "lost": [[path, object], ...], "purged": count}.

    What a purge of this deployment deleted is not lost: the tag of a model that was trained on it may still name it.

    Args:
        root: a clone.
        names: tags; all when empty.
        remote_name: of the DVC configuration; its default when None.
        with_contents: also read every object.
    Raises:
        ConfigError: no such tag, or none at all.
        UnreachableError, CredentialsError, MissingPackageError: the remote gives nothing.
    """
    root = root.resolve()  # DVC works in the root as the current folder
    known = [tag for kind in KINDS for tag in tags(root, kind)]
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"audit: no tags {unknown}; known: {known[-5:]}; run `git fetch --tags`")
    if not known:
        raise ConfigError(f"audit: {root} has no published version; give a clone with its tags (`git fetch --tags`)")
    out: dict[str, dict[str, Any]] = {}
    purged = {object_path(md5) for md5 in purged_objects(root)}
    hashes: dict[str, bool] = {}
    with open_remote(root, remote_name) as remote:
        for tag in names or known:
            count, lost = lost_objects(outputs_at(root, f"refs/tags/{tag}"), remote, cache_dir(root))
            if with_contents:
                lost = sorted({*lost, *altered_objects(root, tag, remote, hashes)})
            is_lost = [one for one in lost if one.object_path not in purged]
            shown = [list(one) for one in is_lost]
            out[tag] = {"objects": count, "lost": shown, "purged": len(lost) - len(is_lost)}
    return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks audit`."""
    default = os.environ.get("MEGAPAIRS_DATASET") or "."
    parser.add_argument(
        "--root", default=default, type=Path, help="a clone (default: MEGAPAIRS_DATASET, else the current folder)"
    )
    parser.add_argument("-r", "--remote", help="another remote of the DVC configuration")
    parser.add_argument("--contents", action="store_true", help="also read every object and compare its hash")
    parser.add_argument("tags", nargs="*", metavar="TAG", help="tags to look at; all when left out")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Look at every tag; {"root", "tags": tag -> {"objects", "lost"}}.

    Raises:
        DataError: names what the remote lacks, by tag.
    """
    found = audit(args.root, args.tags, remote_name=args.remote, with_contents=args.contents)
    lines = []
    for tag, state in found.items():
        purged = f", {state['purged']} purged" if state["purged"] else ""
        print(f"{tag}: {state['objects']} objects, {len(state['lost'])} lost{purged}")
        lines += [f"{tag}: {path} (object {where})" for path, where in state["lost"]]
    if lines:
        shown = lines[:LINES] + ([f"and {len(lines) - LINES} more"] if len(lines) > LINES else [])
        raise DataError(
            f"audit: {sum(bool(state['lost']) for state in found.values())} of {len(found)} tags cannot be pulled; the "
            "remote lacks, or has altered,\n  " + "\n  ".join(shown)
        )
    return {"root": str(args.root), "tags": found}
