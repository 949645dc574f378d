"""Read what is published: versions, files at a commit, and the layout of the branch `dataset`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import ConfigError, DataError
from tasks.publish.git import read_at, resolve_ref

BRANCH = "dataset"
REMOTE_BRANCH = f"origin/{BRANCH}"
DATA_STAGES = (
    "ingest",
    "validate-images",
    "recaption",
    "embed",
    "mine",
    "select",
    "validate-pairs",
    "caption",
    "judge",
    "validate-triplets",
)
MODEL_STAGES = ("train", "evaluate")
MODEL_SECTIONS = ("train", "evaluate", "promote")


def version_at(clone: Path, ref: str = REMOTE_BRANCH) -> dict[str, Any] | None:
    """version.json at a commit of the clone; None where the ref or the file does not exist."""
    if resolve_ref(clone, ref) is None:
        return None
    content = read_at(clone, ref, "version.json")
    return json.loads(content) if content else None


def published_bytes(clone: Path, path: str, ref: str = REMOTE_BRANCH) -> bytes:
    """A published file's content at a commit, from git or (single files with a .dvc) from the clone's DVC cache.

    Raises:
        ConfigError: the commit has no such file.
        DataError: the cache lacks it; `dvc fetch` brings it.
    """
    content = read_at(clone, ref, path)
    if content is not None:
        return content
    pointer = read_at(clone, ref, path + ".dvc")
    if pointer is None:
        raise ConfigError(f"{ref}: no published file {path}")
    md5 = yaml.safe_load(pointer)["outs"][0]["md5"]
    cached = cache_dir(clone) / "files" / "md5" / md5[:2] / md5[2:]
    if not cached.exists():
        raise DataError(f"{cached}: the cache lacks {path} of {ref}; run `dvc fetch {path}.dvc` at that commit")
    return cached.read_bytes()


def cache_dir(clone: Path) -> Path:
    """The DVC cache of a clone: the one in its config.local, else its own."""
    import configparser

    parser = configparser.ConfigParser()
    parser.read(Path(clone) / ".dvc" / "config.local")
    return Path(parser.get("cache", "dir", fallback=str(Path(clone) / ".dvc" / "cache")))


def count_parquet_rows(paths: Iterable[Path]) -> int:
    """Rows of Parquet files together, a count, from their footers."""
    import pyarrow.parquet as pq

    return sum(int(pq.read_metadata(path).num_rows) for path in paths)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
