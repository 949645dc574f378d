"""DVC operations of a run: commit outputs, push, verify, check out the last version's data.

DVC is used as a library: a DVC command costs about 2 s of imports, so one process does commit and push.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import TransientError

log = logging.getLogger(__name__)


@contextmanager
def dvc_repo(root: Path) -> Iterator[Any]:
    """An open `dvc.repo.Repo`; the current folder is its root meanwhile, as DVC requires.

    Raises:
        TransientError: an error of DVC, with its text.
    """
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_objects.errors import ObjectFormatError

    make_reflinks_atomic()
    logging.getLogger("dvc").setLevel(logging.WARNING)
    try:
        with contextlib.chdir(root):
            repo = Repo(".")
            try:
                yield repo
            finally:
                repo.close()
    except (DvcException, ObjectFormatError) as error:
        raise TransientError(f"dvc in {root}: {error}") from error


def make_reflinks_atomic() -> None:
    """Let DVC clone a file into a temporary one first, in this process.

    Its own way (dvc_objects 5) opens the object's final path, empty, asks the file system for a clone, and removes the
    file where it has none. A process that is killed in between leaves an empty object, which DVC takes for whole later
    where it is a folder's list; and for a moment an object that another process has just written is empty.
    """
    from dvc_objects.fs import system

    clone = system.reflink
    if getattr(clone, "is_atomic", False):
        return

    def reflink(source: str, target: str) -> None:
        temporary = f"{target}.{uuid.uuid4().hex}.tmp"
        clone(source, temporary)
        os.replace(temporary, target)

    reflink.is_atomic = True  # type: ignore[attr-defined]
    system.reflink = reflink


def locked_stages(lock: bytes | str | None) -> dict[str, Any]:
    """Stages of a dvc.lock by name (empty for none)."""
    return dict((yaml.safe_load(lock) or {}).get("stages") or {}) if lock else {}


def merge_locks(tip: bytes | None, ours: bytes | None, stages: Sequence[str]) -> bytes:
    """The tip's dvc.lock with `stages` replaced by ours, names sorted."""
    merged, run_stages = locked_stages(tip), locked_stages(ours)
    for name in stages:
        if name in run_stages:
            merged[name] = run_stages[name]
    return yaml.safe_dump({"schema": "2.0", "stages": {k: merged[k] for k in sorted(merged)}}, sort_keys=False).encode()


def commit_outputs(root: Path, sections: Sequence[str], paths: Sequence[str], lock: bytes | None) -> list[str]:
    """Write dvc.lock for stages that ran without DVC, track `paths` by a .dvc file each, put all of it into the cache.

    What `dvc commit -f <stage>` does, with dvc.yaml and dvc.lock read once instead of a dozen times (20 s for 14
    stages). It may be killed at any time and called again: it starts from `lock` and removes the lock file that a
    killed DVC leaves behind. The work tree's files are copied into the cache, never moved or linked back (for a moment
    such a file would be in the cache alone).

    Args:
        sections: entries of dvc.yaml; a foreach entry means all its stages.
        paths: files and folders that no stage of dvc.yaml makes, such as the gallery.
        lock: the dvc.lock that the run was opened with.
    Returns:
        names of the stages committed (``embed@semantic`` ...), in dvc.yaml's order.
    """
    names = []
    if lock is None:
        (root / "dvc.lock").unlink(missing_ok=True)
    else:
        (root / "dvc.lock").write_bytes(lock)
    for path in paths:
        (root / f"{path}.dvc").unlink(missing_ok=True)
    # A half-written lock file would stop every later DVC command, and so would one whose process id is in use again.
    # Nobody else works in this worktree.
    (root / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
    with dvc_repo(root) as repo:
        with repo.lock:
            stages = [s for s in repo.index.stages if getattr(s, "name", None) and s.name.partition("@")[0] in sections]
            for stage in stages:
                stage.save()
                remove_damaged_lists(repo.cache.local, [out.hash_info.value for out in stage.outs if out.hash_info])
                stage.commit(relink=False)
                names.append(str(stage.name))
            if stages:
                stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
        if paths:
            repo.add(list(paths), relink=False)
    return names


def remove_damaged_lists(objects: Any, names: Iterable[str]) -> list[str]:
    """Remove a folder's list (`<md5>.dir`) whose content is another from the cache or the remote.

    DVC takes a list that exists for whole: it would neither write it again nor be able to read it, at any later try.

    Args:
        objects: DVC's object database.
        names: of objects; those that are no lists are left alone.
    Returns:
        the names that were removed; DVC writes them again.
    """
    removed = []
    for name in names:
        if not name.endswith(".dir"):
            continue
        path = objects.oid_to_path(name)
        try:
            content = objects.fs.cat_file(path)
        except FileNotFoundError:
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != name.removesuffix(".dir"):
            objects.fs.remove(path)
            removed.append(name)
    return removed


def push_and_verify(root: Path) -> int:
    """Push all data that the worktree tracks, then ask the remote for every object; returns the count of objects.

    Raises:
        TransientError: the push failed, or the remote lacks an object.
    """
    from dvc_objects.errors import ObjectFormatError

    with dvc_repo(root) as repo:
        wanted: set[str] = set()
        for objects in repo.used_objs().values():
            wanted |= {o.value for o in objects}
        remote = repo.cloud.get_remote_odb()
        try:
            repo.push()
        except ObjectFormatError:  # it has read the lists that the remote holds
            removed = remove_damaged_lists(remote, sorted(wanted))
            if not removed:
                raise
            log.warning("remote %s: damaged lists of folders are written again: %s", remote.path, ", ".join(removed))
            repo.push()
        missing = sorted(wanted - set(remote.oids_exist(list(wanted))))
        if missing:
            raise TransientError(
                f"remote {remote.path}: {len(missing)} of {len(wanted)} objects are missing after the push, "
                f"first {missing[:3]}; run again"
            )
        return len(wanted)


def checkout_data(root: Path, paths: Sequence[str]) -> None:
    """Check out data; what the shared cache lacks is pulled from the remote.

    Args:
        root: of the worktree.
        paths: outputs that its dvc.lock and .dvc files name. An output that its dvc.yaml has and its dvc.lock does not
            (the version is older than the output) would be a fault to DVC.
    """
    from dvc.exceptions import CheckoutError

    if not paths:
        return
    with dvc_repo(root) as repo:
        try:
            repo.checkout(targets=list(paths), force=True)
        except CheckoutError:
            repo.pull(targets=list(paths), force=True)
