"""The files of further rows: data/rows/<task>/<batch>.parquet, one configuration of the card each.

`version.further_rows` says which tasks a batch gets. A file states what it was made of (`made_from` in its metadata, a
SHA-256): where triplets, images, captions or verdicts of its batch went or changed since, it is made anew, or removed
when no row is left.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tasks.config import Params
from tasks.names import batch_name
from tasks.publish.further_rows import RowSources, further_rows, partners
from tasks.records import schemas
from tasks.store import Store
from tasks.store.tables import to_parquet

FOLDER = "data/rows"
SCHEMA = "further_rows"
MADE_FROM = b"made_from"
TRIPLET_COLUMNS = [
    "triplet_id",
    "pair_id",
    "query_image_id",
    "target_image_id",
    "instructions",
    "styles",
    "negative_image_ids",
    "judge_target",
    "description",
    "captioner",
]
NAMED_IMAGES = ["query_image_id", "target_image_id", "negative_image_ids"]
BLOCK_ROWS = 20_000  # of images and captions in memory at a time, as rows
# Images whose captions are in memory, 360 bytes each (and 150 for the id); a batch that names more is read alone.
# Reading over 100,000 images takes 0.16 CPU-seconds: more at a time are fewer readings of everything.
IMAGES_AT_ONCE = 1_000_000


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
    batch, wanted = batch_name(params), params.version.further_rows or ()
    paths = [store.folder(FOLDER, task, f"{batch}.parquet") for task in wanted]
    update_files(
        store, [*rows_files(store.root), *(path for path in paths if not path.exists())], params.caption.prompts
    )
    return count_further_rows(store.root)


def update_files(store: Store, paths: Iterable[Path], prompts: str) -> list[Path]:
    """Write those files anew that are missing, or no longer what their batch's tables give; returns them.

    A file without a row left is removed. Captions are read for several batches at a time, as many as IMAGES_AT_ONCE
    allows: each time all captions are read, and those of the named images kept.
    """
    import pyarrow.parquet as pq

    by_batch: dict[str, list[Path]] = {}
    for path in paths:
        by_batch.setdefault(path.stem, []).append(path)
    changed: list[Path] = []
    for batches, ids in batches_at_once(store, by_batch):
        images = read_images(store, ids)
        for batch in batches:
            sources = read_sources(store, batch, images, prompts)
            digest = made_from(sources)
            for path in by_batch[batch]:
                if not path.exists() or (pq.read_schema(path).metadata or {}).get(MADE_FROM) != digest:
                    changed.append(path)
                    write_file(store, path, sources, digest)
    return changed


def batches_at_once(store: Store, batches: Iterable[str]) -> Iterator[tuple[list[str], set[str]]]:
    """The batches in their order, some at a time, with the images that they name: at most IMAGES_AT_ONCE, or those of
    one batch.
    """
    group: list[str] = []
    ids: set[str] = set()
    for batch in batches:
        named = named_images(store, batch)
        if group and len(ids) + len(named - ids) > IMAGES_AT_ONCE:
            yield group, ids
            group, ids = [], set()
        group.append(batch)
        ids |= named
    if group:
        yield group, ids


def named_images(store: Store, batch: str) -> set[str]:
    """Ids of the images that a batch's rows may name: its own, and all of its triplets."""
    ids = set(store.read_table("images", ["image_id"], batch)["image_id"].to_pylist())
    for path in store.batch_files("triplets", batch):
        for block in store.iter_blocks(path, "triplets", NAMED_IMAGES, rows=BLOCK_ROWS):
            for column in block.columns:
                values = column.combine_chunks()
                ids.update((values.flatten() if hasattr(values, "flatten") else values).to_pylist())
    return ids


def write_file(store: Store, path: Path, sources: RowSources, digest: bytes) -> None:
    """Write data/rows/<task>/<batch>.parquet; none where there is no row."""
    import pyarrow as pa

    rows = further_rows(path.parent.name, sources)
    if rows:
        schema = schemas()[SCHEMA].with_metadata({MADE_FROM: digest})
        store.write_bytes(path, to_parquet(pa.Table.from_pylist(rows, schema=schema)))
    else:
        path.unlink(missing_ok=True)


def made_from(sources: RowSources) -> bytes:
    """SHA-256 (hex) of what the rows of a batch are made of, but for the prompt set's kinds."""
    values: list[Any] = [sources.image_ids, sources.captions, sources.triplets, sources.differences, sources.terms]
    if any(image_id not in sources.captions for image_id in partners(sources)):
        values.append("an image without a caption is no negative")  # it was one in files of an earlier version of this
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest().encode()


class ImageText(NamedTuple):
    """What rows say of an image; texts are empty where there is none."""

    caption: str
    by: str
    licence: str
    attribution: str


def read_images(store: Store, ids: Collection[str]) -> dict[str, ImageText]:
    """Image id -> caption, who wrote it, and terms, of some images; others are read over."""
    columns = ["image_id", "caption", "caption_source", "license_code", "attribution"]
    images = {
        row["image_id"]: ImageText(
            row["caption"] or "",
            sys.intern(row["caption_source"] or "source"),
            sys.intern(row["license_code"] or ""),
            sys.intern(row["attribution"] or ""),
        )
        for row in _rows_of(store, "images", columns, ids)
    }
    for row in _rows_of(store, "captions", columns[:3], ids):
        image = images.get(row["image_id"])
        if image is not None and not image.caption and row["caption"]:
            by = sys.intern(row["caption_source"] or "")
            images[row["image_id"]] = image._replace(caption=row["caption"], by=by)
    return images


def _rows_of(store: Store, table: str, columns: list[str], ids: Collection[str]) -> Iterator[dict[str, Any]]:
    """The rows of a table about some images."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(ids, pa.string())
    for block in store.iter_blocks(store.table_files(table), table, columns, rows=BLOCK_ROWS):
        yield from block.filter(pc.is_in(block.column("image_id"), value_set=wanted)).to_pylist()


def read_sources(store: Store, batch: str, images: Mapping[str, ImageText], prompts: str) -> RowSources:
    """What a batch's rows are made of; captions and terms of the images that they name."""
    triplets = store.read_table("triplets", TRIPLET_COLUMNS, batch).sort_by("triplet_id").to_pylist()
    own = sorted(store.read_table("images", ["image_id"], batch)["image_id"].to_pylist())
    ends = [i for t in triplets for i in (t["query_image_id"], t["target_image_id"], *t["negative_image_ids"])]
    named = {i: images[i] for i in dict.fromkeys([*own, *ends]) if i in images}
    captions = {i: (image.caption, image.by) for i, image in named.items() if image.caption}
    terms = {i: (image.licence, image.attribution) for i, image in named.items()}
    pairs = store.read_table("captioned", ["pair_id", "differences"], batch).to_pylist()
    differences = {row["pair_id"]: row["differences"] or [] for row in pairs}
    return RowSources(batch, own, captions, triplets, differences, terms, prompts)
