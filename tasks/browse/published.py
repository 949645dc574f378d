"""Published versions as pages read them: from the deployment's clone and its DVC cache, without a checkout.

A version never changes, so what is read of one is kept in memory. Files of a version are found by the md5 that its
dvc.lock names; where the cache lacks one (`dvc gc`, another machine), the page says so instead of showing less.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tasks.errors import ConfigError, DataError
from tasks.publish.git import git, read_at, tags
from tasks.publish.published import cache_dir, published_bytes
from tasks.publish.quality import QUALITY_FILE

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = ("images", "pairs", "triplets")  # that have a gate
KEPT_VERSIONS = 600  # records in memory, a count: ten years of weeks


@dataclass(frozen=True)
class PublishedVersion:
    """One version of a deployment.

    Attributes:
        clone: the deployment's clone.
        name: YYYY.MM.DD[.n].
    """

    clone: Path
    name: str

    @property
    def tag(self) -> str:
        """Its git ref."""
        return f"refs/tags/dataset/{self.name}"

    @property
    def record(self) -> dict[str, Any]:
        """version.json."""
        return _record(self.clone, self.tag)

    @property
    def metrics(self) -> dict[str, Any]:
        """reports/quality.json, with what one accepted triplet cost; empty in versions that have none."""
        return _metrics(self.clone, self.tag)

    def text(self, path: str) -> str:
        """A published text file, such as README.md.

        Raises:
            ConfigError, DataError: as of `published_bytes`.
        """
        return published_bytes(self.clone, path, self.tag).decode("utf-8", "replace")

    def gate(self, table: str) -> dict[str, Any] | None:
        """reports/validation/<table>.json; None where the version or the cache has none."""
        found = _outputs(self.clone, self.tag).get(f"reports/validation/{table}.json")
        path = _cached(self.clone, found) if found else None
        return json.loads(path.read_text()) if path and path.is_file() else None

    def files(self, output: str, suffix: str = ".parquet") -> dict[str, Path]:
        """Files of an output folder of dvc.lock: name inside the folder -> path in the cache.

        Args:
            output: such as data/triplets.
            suffix: of the files wanted.
        Raises:
            DataError: the cache lacks one.
        """
        return dict(_folder_files(self.clone, self.tag, output, suffix))

    def table(self, output: str, columns: list[str] | None = None, folder: str | None = None) -> pa.Table:
        """All rows of an output folder of Parquet files, those of the first batch first.

        Args:
            output: such as data/triplets.
            columns: all when None.
            folder: inside the output, whose files alone are read; '' for those that lie in no folder; all when None.
        Raises:
            DataError: as of `files`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = self.files(output)
        names = sorted(name for name in files if folder is None or name.rpartition("/")[0] == folder)
        tables = [pq.read_table(files[name], columns=columns) for name in names]
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def versions(clone: Path) -> list[PublishedVersion]:
    """The published versions of a clone, the newest first."""
    return [PublishedVersion(clone, tag.partition("/")[2]) for tag in reversed(tags(clone, "dataset"))]


def models(clone: Path) -> list[dict[str, Any]]:
    """The promoted models, the newest first: name, what the tag says, scores of each model by query."""
    found = []
    for tag in reversed(tags(clone, "model")):
        ref = f"refs/tags/{tag}"
        content = _file_at(clone, ref, "reports/evaluation.json")
        message = git(clone, "log", "-1", "--format=%s", ref)
        found.append({"name": tag.partition("/")[2], "message": message, "evaluation": json.loads(content or "{}")})
    return found


@functools.lru_cache(maxsize=KEPT_VERSIONS)
def _record(clone: Path, ref: str) -> dict[str, Any]:
    content = read_at(clone, ref, "version.json")
    if content is None:
        raise ConfigError(f"{ref}: no version.json; expected a published version")
    record: dict[str, Any] = json.loads(content)
    return record


@functools.lru_cache(maxsize=KEPT_VERSIONS)
def _metrics(clone: Path, ref: str) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads(read_at(clone, ref, QUALITY_FILE) or "{}")
    return metrics


@functools.lru_cache(maxsize=64)
def _file_at(clone: Path, ref: str, path: str) -> bytes | None:
    return read_at(clone, ref, path)


@functools.lru_cache(maxsize=64)
def _outputs(clone: Path, ref: str) -> dict[str, str]:
    """Path -> md5 of every output in a commit's dvc.lock."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    lock = yaml.load(read_at(clone, ref, "dvc.lock") or b"{}", Loader=loader) or {}
    outputs = [out for stage in (lock.get("stages") or {}).values() for out in stage.get("outs") or []]
    return {str(out["path"]): str(out["md5"]) for out in outputs if "md5" in out}


def _cached(clone: Path, md5: str) -> Path:
    return cache_dir(clone) / "files" / "md5" / md5[:2] / md5[2:]


@functools.lru_cache(maxsize=64)
def _folder_files(clone: Path, ref: str, output: str, suffix: str) -> tuple[tuple[str, Path], ...]:
    md5 = _outputs(clone, ref).get(output)
    if md5 is None:
        return ()
    listing = _cached(clone, md5)
    if not listing.is_file():
        raise DataError(f"{ref}: the DVC cache lacks {output}; run `dvc fetch` in {clone} at that commit")
    entries = [e for e in json.loads(listing.read_text()) if e["relpath"].endswith(suffix)]
    paths = tuple((str(e["relpath"]), _cached(clone, e["md5"])) for e in entries)
    if missing := [name for name, path in paths if not path.is_file()]:
        raise DataError(f"{ref}: the DVC cache lacks {output}/{missing[0]}; run `dvc fetch` in {clone} at that commit")
    return paths
