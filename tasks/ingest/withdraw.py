"""Withdraw stored images that the takedown list names: their bytes, their rows, and what other files say about them.

Order, so that a killed call can be repeated: data/withdrawn/<batch>.parquet (what goes), then the dropped rows, then
batch by batch the tars and last the table of images, whose rows are the sign that something is left to do.

A shard keeps its name, and its other members keep their bytes, one after the other; the offsets in the table follow. A
shard without a member left is removed. The dropped rows of ingest keep hashes of the files' names and bytes, so that a
source's file is not read again, and neither a name nor a sum (tasks/ingest/history.py).
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.fingerprints.takedown import (
    NOTE,
    REASON,
    image_files,
    load_list,
    match_images,
    withdraw_rows,
    withdrawn_path,
)
from tasks.fingerprints.takedown_list import DEFAULT_REASON, Matches, TakedownList
from tasks.ingest.rows import hidden_row
from tasks.names import batch_name, run_date, stable_id
from tasks.store import Store
from tasks.store.atomic import atomic_write
from tasks.store.shards import shard_path
from tasks.store.tables import BATCH_ROWS, TableWriter

log = logging.getLogger(__name__)
WITHDRAWN_CHUNK = 99_999  # number of a batch's file of dropped rows of images that were withdrawn
NOTES = 20  # entries that the report names; all are in the file of `report_path`
ENDS = ("query_image_id", "target_image_id")
Row = dict[str, Any]


def report_path(store: Store, batch: str) -> Path:
    """Where a batch records what each entry of the takedown list matched; never versioned."""
    return store.folder(".run", "ingest", f"{batch}.takedown.json")


def withdraw_images(params: Params, store: Store) -> TakedownList | None:
    """Withdraw the stored images that the list names; returns the list, None where none is configured.

    Raises:
        ConfigError: the list is unreadable, has a line that is no entry, or no entry.
    """
    takedown = load_list(params, store)
    if takedown is None:
        return None
    batch = batch_name(params)
    matches = match_images(params, store, takedown)
    write_report(store, batch, takedown, matches)
    _hide_refused(store, takedown)
    rows = _withdrawn_rows(params, store, takedown, matches)
    if not rows:
        return takedown
    removed = {row["id"] for row in rows if row["kind"] == "image"}
    store.write(withdrawn_path(store, batch), rows, "withdrawn")
    files = image_files(store)
    _hide_dropped(store, batch, _image_rows(store, files, removed))
    for name in sorted({path.stem for path in files}):
        _rewrite_batch(store, [path for path in files if path.stem == name], removed)
    rules = sorted(store.folder("data", "quarantine", "images").glob("*.parquet"))
    withdraw_rows(store, rules, "quarantine", removed)
    if matches.entries:
        log.info("ingest: %d images withdrawn", len(matches.entries))
    return takedown


def _withdrawn_rows(params: Params, store: Store, takedown: TakedownList, matches: Matches) -> list[Row]:
    """Rows of table `withdrawn`: images, and pairs and triplets that go with them; an earlier try's stay."""
    batch, date = batch_name(params), run_date(params)
    path = withdrawn_path(store, batch)
    rows = {row["id"]: row for row in (store.read(path, "withdrawn").to_pylist() if path.exists() else [])}
    for image_id, number in matches.entries.items():
        reason = takedown.entries[number].reason
        rows[image_id] = {"id": image_id, "kind": "image", "withdrawn_on": date, "batch": batch, "reason": reason}
    reasons = {i: row["reason"] for i, row in rows.items() if row["kind"] == "image"}
    for kind, row_id, image_id in _rows_of_images(store, reasons.keys()):
        fact = {"kind": kind, "withdrawn_on": date, "batch": batch, "reason": reasons.get(image_id, DEFAULT_REASON)}
        rows.setdefault(row_id, {"id": row_id, **fact})
    return sorted(rows.values(), key=lambda row: (row["kind"], row["id"]))


def _rows_of_images(store: Store, removed: Set[str]) -> Iterable[tuple[str, str, str]]:
    """(kind, id, image id) of the pairs and triplets that start or end at a removed image, reversed pairs included."""
    if not removed:
        return
    captioned = set(store.read_table("captioned", ["pair_id"]).column("pair_id").to_pylist())
    for kind, table in (("pair", "pairs"), ("triplet", "triplets")):
        files = [*store.table_files(table), *sorted(store.folder("data/quarantine", table, "rows").glob("*.parquet"))]
        for block in store.iter_blocks(files, table, [f"{kind}_id", *ENDS], rows=50_000):
            for row_id, query, target in zip(*block.to_pydict().values(), strict=True):
                if image_id := next((i for i in (query, target) if i in removed), None):
                    yield kind, row_id, image_id
                    if kind == "pair" and (reverse := stable_id(target, query)) in captioned:
                        yield kind, reverse, image_id


def _image_rows(store: Store, files: Sequence[Path], removed: Set[str]) -> list[Row]:
    columns = ["image_id", "source_uri", "source_sha256", "source_fingerprint"]
    blocks = store.iter_blocks(files, "images", columns, rows=50_000)
    return [row for block in blocks for row in block.to_pylist() if row["image_id"] in removed]


def _hide_dropped(store: Store, batch: str, images: Sequence[Row]) -> None:
    """Write the dropped rows of withdrawn images; hide what earlier rows say about them and their copies."""
    path = store.dropped_path("ingest", batch, WITHDRAWN_CHUNK)
    rows = {row["key"]: row for row in (store.read(path, "dropped").to_pylist() if path.exists() else [])}
    for image in images:
        facts = (image["source_uri"], image["source_sha256"], image["source_fingerprint"] or "")
        row = hidden_row(*facts, batch)
        rows[row["key"]] = row
    store.write(path, [rows[key] for key in sorted(rows)], "dropped")
    words = {word for image in images for word in (image["image_id"], image["source_sha256"]) if word}
    _hide_rows(store, lambda row: _names(row, words))


def _hide_refused(store: Store, takedown: TakedownList) -> None:
    """Hide what dropped rows say about files that the list names and that were never taken in."""
    _hide_rows(store, lambda row: _is_listed(row, takedown))


def _hide_rows(store: Store, is_named: Callable[[Row], bool]) -> None:
    """Hide the named ones of ingest's dropped rows; a file without one is left alone, and few rows are in memory."""
    for file in sorted(store.folder("data", "dropped", "ingest").glob("*.parquet")):
        if all(_hidden(row) == row for row in _dropped_rows(store, file) if is_named(row)):
            continue
        writer = TableWriter(file, "dropped")
        try:
            for row in _dropped_rows(store, file):
                writer.add(_hidden(row) if is_named(row) else row)
            writer.close()
        except BaseException:
            writer.discard()
            raise


def _dropped_rows(store: Store, file: Path) -> Iterator[Row]:
    """The rows of a file of dropped rows, one after the other."""
    for block in store.iter_blocks(file, "dropped", rows=BATCH_ROWS):
        for batch in block.to_batches(max_chunksize=BATCH_ROWS):
            yield from batch.to_pylist()


def _is_listed(row: Row, takedown: TakedownList) -> bool:
    detail = json.loads(row["detail"]) if row["detail"].startswith("{") else {}
    return takedown.find_exact((detail.get("sha256", ""),), row["key"]) is not None


def _names(row: Row, words: Set[str]) -> bool:
    return any(word in row["detail"] or word in row["key"] for word in words)


def _hidden(row: Row) -> Row:
    """A dropped row of a copy, without its name and sums."""
    if row["reason"] == REASON and "withheld" in (row["detail"] or ""):
        return row
    detail = json.loads(row["detail"]) if row["detail"].startswith("{") else {}
    return hidden_row(row["key"], detail.get("sha256", ""), detail.get("fingerprint", ""), row["batch"])


# --- tars and tables of images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A file in a tar: where its header starts, where its bytes start and end, and where the next header starts."""

    name: str
    start: int
    data: int
    size: int
    end: int


def read_members(path: Path) -> list[Member]:
    """The files of a tar, in their order."""
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
        ends = [info.offset for info in infos[1:]] + [
            info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for info in infos[-1:]
        ]
    return [Member(i.name, i.offset, i.offset_data, i.size, end) for i, end in zip(infos, ends, strict=True)]


def rewrite_shard(path: Path, removed: Set[str]) -> bool:
    """Rewrite a tar without the members of some images; whether anything was left out.

    The other members keep their bytes, headers included, and their order. A tar without any left is removed.
    """
    members = read_members(path)
    kept = [member for member in members if member.name.partition(".")[0] not in removed]
    if len(kept) == len(members):
        return False
    if not kept:
        path.unlink()
        return True
    with atomic_write(path) as temporary, open(path, "rb") as source, open(temporary, "wb") as out:
        for member in kept:
            source.seek(member.start)
            left = member.end - member.start
            while block := source.read(min(left, 1 << 20)):
                out.write(block)
                left -= len(block)
        out.write(bytes(2 * tarfile.BLOCKSIZE))
        out.write(bytes(-out.tell() % tarfile.RECORDSIZE))
    return True


def _rewrite_batch(store: Store, files: Sequence[Path], removed: Set[str]) -> None:
    """Rewrite a batch's shards, then its table (and its quarantined rows) without the removed images."""
    tables = {path: store.read(path, "images").to_pylist() for path in files}
    gone = [row for rows in tables.values() for row in rows if row["image_id"] in removed]
    if not gone:
        return
    offsets: dict[str, Mapping[str, int]] = {}
    for shard in sorted({row["shard"] for row in gone if row["shard"]}):
        path = shard_path(store.root, shard)
        if path.exists():
            rewrite_shard(path, removed)
        members = read_members(path) if path.exists() else []
        offsets[shard] = {member.name.partition(".")[0]: member.data for member in members if _is_image(member)}
    for path, rows in sorted(tables.items(), key=lambda item: item[0].parent.name == "images"):  # the table comes last
        after = [
            {**row, "offset_bytes": offsets.get(row["shard"], {}).get(row["image_id"], row["offset_bytes"])}
            for row in rows
            if row["image_id"] not in removed
        ]
        if after != rows:
            store.write(path, after, "images")


def _is_image(member: Member) -> bool:
    return not member.name.endswith(".json")


# --- the report ------------------------------------------------------------------------------------------------------


def write_report(store: Store, batch: str, takedown: TakedownList, matches: Matches | None = None) -> None:
    """Record what each entry matched; what an earlier call recorded of this batch stays in the record."""
    matches = matches or Matches()
    path = report_path(store, batch)
    earlier = {row["where"] + row["value"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    record = []
    for number, entry in enumerate(takedown.entries):
        before = earlier.get(entry.where + entry.value, {"images": [], "near": [], "refused": 0})
        images = [i for i, of_entry in matches.entries.items() if of_entry == number]
        record.append(
            {
                "where": entry.where,
                "kind": entry.kind,
                "value": entry.value,
                "images": sorted({*before["images"], *images}),
                "near": [list(hit) for hit in matches.near.get(number, [])] or before["near"],
                "refused": max(takedown.refused[number], before["refused"]),
            }
        )
    store.write_bytes(path, json.dumps(record, ensure_ascii=False).encode())


def takedown_notes(store: Store, batch: str) -> list[str]:
    """Sentences about what the entries matched: the whole, then the first entries one by one."""
    path = report_path(store, batch)
    record = json.loads(path.read_text()) if path.exists() else []
    if not record:
        return []
    unmatched = sum(not row["images"] and not row["refused"] and not row["near"] for row in record)
    images = sum(len(row["images"]) for row in record)
    notes = [f"{NOTE} list: {len(record)} entries, {images} stored images withdrawn, {unmatched} entries match none"]
    named = [row for row in record if row["images"] or row["near"] or row["refused"]]
    return notes + [entry_note(row) for row in named[:NOTES]]


def entry_note(row: Mapping[str, Any]) -> str:
    """What one entry matched, as a sentence."""
    what = f"{NOTE}, {row['where']} ({row['kind']} {row['value'][:80]}): {len(row['images'])} images withdrawn"
    if row["refused"]:
        what += f", {row['refused']} new files refused"
    if row["near"]:
        near = ", ".join(f"{image_id} ({bits} bits)" for image_id, bits in row["near"][:5])
        what += f"; {len(row['near'])} images resemble it and stay: {near}. Look at them, and list the ids that must go"
    return what
