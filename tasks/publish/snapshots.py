"""A version's files without checking it out: read from git, the DVC cache and, where that lacks them, the remote.

`Snapshot.of_tag` is a published version, `Snapshot.of_worktree` the one that a run is about to publish. Two snapshots
are compared by the SHA-256 in their manifests: of files that both have, none is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError, DataError
from tasks.publish.git import read_at, resolve_ref, tags
from tasks.publish.published import cache_dir
from tasks.publish.remote import folder_list, is_content, object_path, open_remote, outputs_at
from tasks.records import schemas
from tasks.store import Store
from tasks.store.atomic import write_bytes
from tasks.store.shards import SHARDS

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class Snapshot:
    """The tables and images of one version.

    Attributes:
        name: of the version.
        record: version.json.
        hashes: path -> SHA-256 of every data file.
        locate: path -> a local file with that content.
    """

    name: str
    record: Mapping[str, Any]
    hashes: Mapping[str, str]
    locate: Callable[[str], Path]
    _places: dict[str, tuple[str, int, int]] | None = field(default=None, repr=False)

    @classmethod
    def of_tag(cls, clone: Path, tag: str) -> Snapshot:
        """A published version.

        Raises:
            ConfigError: no such version in this clone.
        """
        clone = clone.resolve()
        tag = tag if tag.startswith("dataset/") else f"dataset/{tag}"
        ref = f"refs/tags/{tag}"
        if resolve_ref(clone, ref) is None:
            raise ConfigError(f"no version {tag}; known: {tags(clone, 'dataset')[-5:]}; run `git fetch --tags`")
        record = json.loads(read_at(clone, ref, "version.json") or b"{}")
        manifest = json.loads(read_at(clone, ref, "manifest.json") or b"{}")
        hashes = {path: entry["sha256"] for path, entry in manifest.items() if path.startswith("data/")}
        return cls(record.get("version", tag), record, hashes, CachedFiles(clone, ref))

    @classmethod
    def of_worktree(cls, root: Path, record: Mapping[str, Any], manifest: Mapping[str, Mapping[str, Any]]) -> Snapshot:
        """What a run is about to publish; the files lie in its worktree."""
        hashes = {path: str(entry["sha256"]) for path, entry in manifest.items() if path.startswith("data/")}
        return cls(str(record["version"]), record, hashes, lambda path: root / path)

    def table_files(self, table: str, other: Snapshot | None = None, batch: str | None = None) -> list[str]:
        """Paths of a table's files, sorted; without those that another snapshot has too, or of one batch alone."""
        folder = f"data/{table}/"
        names = [
            p
            for p in self.hashes
            if p.startswith(folder) and p.endswith(".parquet") and p.count("/") == folder.count("/")
        ]
        stems = {p: p.rpartition("/")[2].removesuffix(".parquet") for p in names}
        return sorted(
            p
            for p, stem in stems.items()
            if (other is None or other.hashes.get(p) != self.hashes[p])
            and (batch is None or batch in (stem, stem.rpartition("-")[0]))
        )

    def read(
        self,
        table: str,
        columns: list[str] | None = None,
        *,
        schema: str | None = None,
        other: Snapshot | None = None,
        batch: str | None = None,
    ) -> pa.Table:
        """Rows of a table: all, those of the files that `other` does not have, or those of one batch."""
        files = [self.locate(path) for path in self.table_files(table, other, batch)]
        return Store(Path()).read(files, schema or table, columns)

    def rows_of(
        self, table: str, key: str, ids: Iterable[str], columns: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """The rows of a table whose key is one of the ids, sorted by it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted, found = pa.array(sorted(set(ids)), pa.string()), []
        if len(wanted):
            names = schemas()[table].names if columns is None else columns
            for path in self.table_files(table):
                rows = Store(Path()).read(self.locate(path), table, names)
                found += rows.filter(pc.is_in(rows.column(key), value_set=wanted)).to_pylist()
        return sorted(found, key=lambda row: str(row[key]))

    def image_bytes(self, image_id: str) -> bytes:
        """A stored image: one read of its shard.

        Raises:
            DataError: the version has no such image.
        """
        if self._places is None:
            rows = self.read("images", ["image_id", "shard", "offset_bytes", "size_bytes"]).to_pydict()
            places = zip(rows["shard"], rows["offset_bytes"], rows["size_bytes"], strict=True)
            self._places = dict(zip(rows["image_id"], places, strict=True))
        if image_id not in self._places:
            raise DataError(f"{self.name}: no image {image_id}")
        shard, offset, size = self._places[image_id]
        path = f"data/{SHARDS}/{shard}"
        with open(self.locate(path if path in self.hashes else f"data/images/{shard}"), "rb") as file:
            file.seek(offset)
            return file.read(size)


def fetched_path(clone: Path, md5: str) -> Path:
    """Where an object lies that was fetched from the remote: what DVC has not checked stays out of its cache."""
    return clone / ".dvc" / "tmp" / "megapairs" / md5


class CachedFiles:
    """Local files with the content of a commit's data files: objects of the clone's DVC cache."""

    def __init__(self, clone: Path, ref: str) -> None:
        self._clone, self._ref, self._cache = clone, ref, cache_dir(clone)
        self._objects: dict[str, str] | None = None

    def __call__(self, path: str) -> Path:
        """The object of a data file; from the remote where the cache lacks it.

        Raises:
            DataError: neither has it.
        """
        objects = self._known()
        if path not in objects:
            raise DataError(f"{self._ref}: DVC tracks no {path}")
        local = self._cache / object_path(objects[path])
        if not local.exists():
            local = fetched_path(self._clone, objects[path])
        if not local.exists():
            self._fetch(objects[path], path, local)
        return local

    def _known(self) -> dict[str, str]:
        if self._objects is None:
            outputs = outputs_at(self._clone, self._ref)
            objects: dict[str, str] = {}
            lists = {o.md5: folder_list(o.md5, self._cache, None) for o in outputs if o.md5.endswith(".dir")}
            if any(entries is None for entries in lists.values()):
                with open_remote(self._clone) as remote:
                    lists |= {md5: folder_list(md5, self._cache, remote) for md5, e in lists.items() if e is None}
            for path, md5 in outputs:
                entries = lists.get(md5)
                objects |= {f"{path}/{name}": one for name, one in entries} if entries is not None else {path: md5}
            self._objects = objects
        return self._objects

    def _fetch(self, md5: str, path: str, local: Path) -> None:
        with open_remote(self._clone) as remote:
            content = remote.read(md5)
        if content is None:
            raise DataError(f"{self._ref}: neither the cache nor the remote has {path} ({object_path(md5)})")
        if not is_content(md5, content):
            raise DataError(
                f"{self._ref}: altered in the remote: {path} ({object_path(md5)}); expected the content that was "
                "published; `python -m tasks audit --contents` names what else is; restore the remote from its backup"
            )
        local.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(local, content)
