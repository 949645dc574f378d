"""Parameters for runs of ingest in tests, and what such a run left in the store."""

import hashlib
from pathlib import Path
from typing import Any

from tasks.config import Params, parse_params, read_raw, resolve
from tasks.store import Store


def ingest_params(
    sources: list[dict[str, Any]], batch: str = "2026.01.04", *, limit: int | None = None, **changes: object
) -> Params:
    """Profile `test` over these sources.

    Args:
        sources: entries of ingest.sources; licence CC0-1.0 and attribution 'me' unless they say otherwise.
        batch: its date is the batch's name.
        limit: open_run.limit.
        changes: other keys of the section ingest.
    """
    rows = [{"license_code": "CC0-1.0", "attribution": "me", **source} for source in sources]
    overrides = {
        "open_run": {"batch": batch, "date": batch[:10].replace(".", "-"), "limit": limit},
        "ingest": {"sources": rows, **changes},
    }
    return parse_params(resolve(read_raw(Path("params.yaml")), "test", overrides))


def folder_params(folder: Path, batch: str = "2026.01.04", *, limit: int | None = None, **changes: object) -> Params:
    """`ingest_params` with this folder, named 'mine', as the only source."""
    return ingest_params([{"name": "mine", "path": str(folder)}], batch, limit=limit, **changes)


def read_kept(store: Store) -> dict[str, dict[str, Any]]:
    """Path inside the source -> row of the images table."""
    return {row["source_uri"].partition(":")[2]: row for row in store.read_table("images").to_pylist()}


def read_drop_reasons(store: Store) -> dict[str, str]:
    """Path inside the source -> reason of ingest's dropped row."""
    return {row["key"].partition(":")[2]: row["reason"] for row in store.read_dropped("ingest").to_pylist()}


def hash_files(root: Path) -> dict[str, str]:
    """Path -> sha256 of all files below root/data."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / "data").rglob("*"))
        if path.is_file()
    }


def hash_finished_files(root: Path) -> dict[str, str]:
    """As `hash_files`, without the temporary files that a killed run leaves behind."""
    return {name: sha256 for name, sha256 in hash_files(root).items() if not name.endswith(".tmp")}
