"""Files that people put on the branch of the versions: kept in every later version, or refused; never dropped.

A version's commit holds the deployed code, the data product's files, and what people added beside them (CITATION.cff,
notes). Which code a commit was composed of stands in its message (CODE_TRAILER). What was changed by hand in code or
product would be overwritten by the next version, so that version is refused until somebody has moved it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tasks.errors import DataError
from tasks.publish.git import files_at, git, read_at, resolve_ref
from tasks.publish.published import BRANCH

CODE_TRAILER = "Deployed-code"


class Base(NamedTuple):
    """The newest commit of the branch that a publication made, and the deployed code that it was composed of."""

    commit: str
    code: str | None  # None where this clone no longer has it


def find_base(clone: Path, tip: str) -> Base:
    """The publication below the branch's tip; versions before the trailer name their code in version.json."""
    form = f"--format=%H %(trailers:key={CODE_TRAILER},valueonly,separator=%x2C)"
    for line in git(clone, "log", "--first-parent", form, tip).splitlines():
        commit, _, code = line.partition(" ")
        if code.strip():
            return Base(commit, resolve_ref(clone, code.strip()))
    record = read_at(clone, tip, "version.json")
    stated = json.loads(record).get("git_commit") if record else None
    return Base(tip, resolve_ref(clone, stated) if stated else None)


def hand_made(clone: Path, base: Base, tip: str) -> dict[str, str]:
    """path -> A, M or D: what people added, changed or deleted since the publication."""
    fields = git(clone, "diff", "--no-renames", "--name-status", "-z", base.commit, tip).split("\0")
    return dict(zip(fields[1::2], (status[0] for status in fields[0::2]), strict=False))


def peoples_files(clone: Path, tip: str, deployed: str, is_product: Callable[[str], bool]) -> list[str]:
    """Entries of `git update-index --index-info` of the files that people added to the branch and that are there now.

    Args:
        clone: the deployment's clone, or a worktree of it.
        tip: commit of the branch.
        deployed: commit of the code that the next version is composed of.
        is_product: whether a path is the data product's.
    Raises:
        DataError: a file of the product or of the code was changed by hand, or a file that people added has the name of
            one.
    """
    base, new_code = find_base(clone, tip), set(files_at(clone, deployed))
    old_code = set(files_at(clone, base.code)) if base.code else new_code
    changed = hand_made(clone, base, tip)
    lost = [path for path in changed if is_product(path) or path in old_code | new_code]
    kept = [path for path in files_at(clone, tip) if not is_product(path) and path not in old_code]
    lost += [path for path in kept if path in new_code and read_at(clone, tip, path) != read_at(clone, deployed, path)]
    if lost:
        raise DataError(
            f"origin, branch {BRANCH}: {', '.join(sorted(set(lost))[:5])} changed there by hand, and the next version "
            "would overwrite it; expected only files of other names, which are kept. Move the text to such a file and "
            f"undo the change (`git revert` of the commits after {base.commit[:12]}), then run again"
        )
    wanted = set(kept)
    entries = git(clone, "ls-tree", "-r", "-z", tip).split("\0")[:-1]
    return [entry for entry in entries if entry.partition("\t")[2] in wanted]
