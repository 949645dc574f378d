"""The files of further rows: data/rows/<task>/<batch>.parquet, one configuration of the card each.

`version.further_rows` says which tasks a batch gets. A file states what it was made of (`made_from` in its metadata):
where triplets or images of its batch went since, or negatives of them, it is made anew, or removed when no row is left.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import Params
from tasks.names import batch_name
from tasks.publish.further_rows import RowSources, further_rows
from tasks.records import schemas
from tasks.store import Store
from tasks.store.tables import to_parquet

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "data/rows"
SCHEMA = "further_rows"
MADE_FROM = b"made_from"
IDENTITY_COLUMNS = ["triplet_id", "negative_image_ids"]  # of a batch's triplets


def rows_files(root: Path) -> list[Path]:
    """All files of further rows, by task, then by batch."""
    return sorted((root / FOLDER).glob("*/*.parquet"))


def count_further_rows(root: Path) -> dict[str, int]:
    """Task -> rows of its files, a count; tasks without a file are left out."""
    import pyarrow.parquet as pq

    counts: dict[str, int] = {}
    for path in rows_files(root):
        counts[path.parent.name] = counts.get(path.parent.name, 0) + int(pq.read_metadata(path).num_rows)
    return counts


def write_further_rows(params: Params, store: Store) -> dict[str, int]:
    """Write the files of this run's batch and mend those of earlier ones; returns `count_further_rows`."""
    batch = batch_name(params)
    for task in params.version.further_rows or ():
        path = store.folder(FOLDER, task, f"{batch}.parquet")
        if not path.exists():
            write_file(store, path, task, params.caption.prompts)
    update_further_rows(store, params.caption.prompts)
    return count_further_rows(store.root)


def update_further_rows(store: Store, prompts: str) -> list[Path]:
    """Make those files anew that are no longer what their batch's tables give; returns them, by name."""
    import pyarrow.parquet as pq

    changed, known = [], dict[str, str]()
    for path in rows_files(store.root):
        batch = path.stem
        if batch not in known:
            known[batch] = made_from(store, batch)
        if (pq.read_schema(path).metadata or {}).get(MADE_FROM, b"").decode() != known[batch]:
            changed.append(path)
            path.unlink()
            write_file(store, path, path.parent.name, prompts)
    return changed


def write_file(store: Store, path: Path, task: str, prompts: str) -> int:
    """Write one file; none where there is no row. Returns the row count."""
    import pyarrow as pa

    rows = further_rows(task, read_sources(store, path.stem, prompts))
    if rows:
        schema = schemas()[SCHEMA].with_metadata({MADE_FROM: made_from(store, path.stem).encode()})
        store.write_bytes(path, to_parquet(pa.Table.from_pylist(rows, schema=schema)))
    return len(rows)


def made_from(store: Store, batch: str) -> str:
    """SHA-256 of the ids that the rows of a batch are made of."""
    triplets = store.read_table("triplets", IDENTITY_COLUMNS, batch).to_pydict()
    images = store.read_table("images", ["image_id"], batch).to_pydict()
    return hashlib.sha256(json.dumps([triplets, images], sort_keys=True).encode()).hexdigest()


def read_sources(store: Store, batch: str, prompts: str) -> RowSources:
    """What a batch's rows are made of; captions and terms of the images that they name alone are kept."""
    import pyarrow as pa
    import pyarrow.compute as pc

    triplets = store.read_table("triplets", batch=batch).sort_by("triplet_id").to_pylist()
    own = sorted(store.read_table("images", ["image_id"], batch)["image_id"].to_pylist())
    ends = [i for t in triplets for i in (t["query_image_id"], t["target_image_id"], *t["negative_image_ids"])]
    wanted = pa.array(list(dict.fromkeys([*own, *ends])), pa.string())

    def named(table: pa.Table) -> list[dict[str, Any]]:
        return table.filter(pc.is_in(table.column("image_id"), value_set=wanted)).to_pylist()

    columns = ["image_id", "caption", "caption_source", "license_code", "attribution"]
    images = named(store.read_table("images", columns))
    captions = {
        row["image_id"]: (row["caption"], row["caption_source"] or "source") for row in images if row["caption"]
    }
    for row in named(store.read_table("captions", ["image_id", "caption", "caption_source"])):
        if row["caption"]:
            captions.setdefault(row["image_id"], (row["caption"], row["caption_source"] or ""))
    terms = {row["image_id"]: (row["license_code"] or "", row["attribution"] or "") for row in images}
    pairs = store.read_table("captioned", ["pair_id", "differences"], batch).to_pylist()
    differences = {row["pair_id"]: row["differences"] or [] for row in pairs}
    return RowSources(batch, own, captions, triplets, differences, terms, prompts)
