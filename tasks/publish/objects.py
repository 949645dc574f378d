"""Which DVC objects a commit names: read from its dvc.lock, its .dvc files and the lists of its folders.

An object is named by its MD5, as DVC has it; a folder is the object of its list (`<md5>.dir`), which names its files. A
list that the cache lacks is read from the remote. What a purge deleted counts as named by nothing: the tag of a model
that was trained on it may still do so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tasks.errors import DataError
from tasks.publish.dvc_repo import dvc_repo
from tasks.publish.published import cache_dir
from tasks.publish.purge_record import purged_objects
from tasks.publish.remote import is_content, outputs_at
from tasks.publish.verify import tracked_outputs


class Objects:
    """The objects of a deployment's clone: what commits name, and their contents."""

    def __init__(self, clone: Path) -> None:
        self.clone, self._lists = clone, dict[str, list[dict[str, str]]]()
        self._cache = cache_dir(clone) / "files" / "md5"
        self._purged = purged_objects(clone)

    def files_at(self, ref: str) -> dict[str, str]:
        """path -> object of every data file of a commit, those inside folders one by one."""
        files: dict[str, str] = {}
        for path, name in outputs_at(self.clone, ref):
            files |= self._expanded(path, name)
        return {path: name for path, name in files.items() if name not in self._purged}

    def named_at(self, ref: str) -> set[str]:
        """All objects that a commit names, the lists of folders included."""
        return self._all_of(dict(outputs_at(self.clone, ref)))

    def named_in(self, worktree: Path) -> set[str]:
        """All objects that a worktree's dvc.lock and .dvc files name; lists that are not made yet are left out."""
        return self._all_of(dict(tracked_outputs(worktree)), is_open=True)

    def _all_of(self, outputs: Mapping[str, str], *, is_open: bool = False) -> set[str]:
        named = set(outputs.values())
        for path, name in outputs.items():
            try:
                named |= set(self._expanded(path, name).values())
            except DataError:
                if not is_open:
                    raise
        return named - self._purged

    def files_in(self, path: str, name: str) -> tuple[dict[str, str], bool]:
        """(path -> object of the files of a folder, whether none of them was purged).

        Raises:
            DataError: neither cache nor remote has the folder's list.
        """
        files = self._expanded(path, name)
        kept = {inside: md5 for inside, md5 in files.items() if md5 not in self._purged}
        return kept, len(kept) == len(files)

    def _expanded(self, path: str, name: str) -> dict[str, str]:
        if not name.endswith(".dir"):
            return {path: name}
        if name not in self._lists:
            self._lists[name] = json.loads(self.read(name))
        return {f"{path}/{entry['relpath']}": entry["md5"] for entry in self._lists[name]}

    def path(self, name: str) -> Path:
        """Where the cache keeps an object; the file may not exist."""
        return self._cache / name[:2] / name[2:]

    def read(self, name: str) -> bytes:
        """An object's content, from the cache or the remote.

        Raises:
            DataError: both lack it.
        """
        if (path := self.path(name)).exists():
            return path.read_bytes()
        with dvc_repo(self.clone) as repo:
            odb = repo.cloud.get_remote_odb()
            try:
                content: bytes = odb.fs.cat_file(odb.oid_to_path(name))
            except FileNotFoundError:
                raise DataError(
                    f"object {name}: neither in the cache {self._cache} nor in the remote {odb.path}; expected there, "
                    "for a version needs it; restore the remote from a backup"
                ) from None
        if not is_content(name, content):
            raise DataError(
                f"object {name}: altered in the remote {odb.path}; expected the content that was published, for a "
                "version needs it; restore the remote from a backup"
            )
        return content
