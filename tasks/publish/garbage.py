"""Objects of the DVC cache and the remote that no version needs: what needs one, and the removal of the rest.

Needed is what a tag, the tip of a branch of origin or an open run names, folders' lists included. `python -m tasks gc`
and `python -m tasks runs --prune` both remove by this rule, so that neither takes what the other keeps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.errors import DataError
from tasks.publish.dvc_repo import dvc_repo
from tasks.publish.git import git, publishing_lock
from tasks.publish.objects import Objects
from tasks.publish.publish import fetch


class Garbage(NamedTuple):
    """Objects that nothing needs: where they lie, how many, and their bytes."""

    where: str
    objects: int
    size_bytes: int


def needed_objects(clone: Path, open_runs: Sequence[Path]) -> set[str]:
    """MD5 names of all objects that a tag, a branch of origin or an open run names, folders' lists included.

    Raises:
        DataError: the list of a folder is neither in the cache nor in the remote.
    """
    objects = Objects(clone)
    refs = git(clone, "for-each-ref", "--format=%(refname)", "refs/tags", "refs/remotes/origin").split()
    needed: set[str] = set()
    for ref in refs:
        if not ref.endswith("/HEAD"):
            needed |= objects.named_at(ref)
    for worktree in open_runs:
        needed |= objects.named_in(worktree)
    return needed


def collect(clone: Path, open_runs: Sequence[Path], *, in_remote: bool, is_dry: bool) -> tuple[list[Garbage], int]:
    """Find the objects that nothing needs, and remove them unless `is_dry`; (they, the count of needed ones).

    Origin's tags are fetched first. No run may work meanwhile: its objects are named by nothing yet.

    Args:
        clone: of the deployment.
        open_runs: worktrees of the runs that are open.
        in_remote: look in the remote too.
        is_dry: remove nothing.
    Raises:
        DataError: a needed object is missing in the remote; nothing is removed then, for something else is wrong.
    """
    with publishing_lock(clone):
        fetch(clone)
        needed = needed_objects(clone, open_runs)
        found = []
        with dvc_repo(clone) as repo:
            logging.getLogger("dvc").setLevel(logging.ERROR)
            stores = {"cache": repo.cache.local, **({"remote": repo.cloud.get_remote_odb()} if in_remote else {})}
            present = {where: set(odb.all()) for where, odb in stores.items()}
            if in_remote and (missing := sorted(needed - present["remote"])):
                raise DataError(
                    f"gc: the remote lacks {len(missing)} of {len(needed)} objects that versions need, first "
                    f"{missing[:3]}; nothing is removed; find out what they were (`python -m tasks audit`)"
                )
            for where, odb in stores.items():
                unneeded = sorted(present[where] - needed)
                found.append(Garbage(where, len(unneeded), _remove(odb, unneeded, is_dry=is_dry)))
    return found, len(needed)


def _remove(odb: Any, names: Sequence[str], *, is_dry: bool) -> int:
    """Remove objects from a store of DVC's, unless `is_dry`; returns their bytes."""
    size = 0
    for name in names:
        size += int(odb.fs.info(odb.oid_to_path(name))["size"] or 0)
        if not is_dry:
            odb.delete(name)
    return size
