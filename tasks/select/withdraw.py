"""Withdraw pairs and negatives whose images were taken down, and fill the places of the negatives."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.config import MINER_ROLES, Params
from tasks.fingerprints.takedown import REASON
from tasks.select.candidates import ABSENT, Candidates
from tasks.select.negatives import Retrieved, RetrievedRows, hard_negatives, negative_rules, pair_blocks
from tasks.select.read_neighbours import ENDS, mined_rows, open_vectors, read_mined, rows_with_queries
from tasks.select.spill import WorkingMemory
from tasks.store import Store
from tasks.store.id_order import encode_ids
from tasks.store.tables import ROW_GROUP_ROWS, TableWriter, names_any_id

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
Row = Mapping[str, Any]  # of table `pairs`


def refill_negatives(row: Row, proposed: Sequence[tuple[str, float]], removed: Set[str]) -> dict[str, Any]:
    """A pair without the negatives that were removed; the nearest proposed images take their places, at the end.

    Args:
        row: of table `pairs`.
        proposed: (image id, similarity to the target), the nearest first.
        removed: image ids.
    """
    negatives = zip(row["negative_image_ids"], row["negative_similarity"], strict=True)
    rest = [(i, s) for i, s in negatives if i not in removed]
    present = {i for i, _ in rest}
    new = [(i, s) for i, s in proposed if i not in present and i not in removed]
    rest += new[: len(row["negative_image_ids"]) - len(rest)]
    return {**row, "negative_image_ids": [i for i, _ in rest], "negative_similarity": [s for _, s in rest]}


def withdraw_pairs(params: Params, store: Store, batch: str, encoders: Sequence[str], removed: Set[str]) -> None:
    """Drop the pairs of removed images, and fill their places as negatives from what the pair's encoders retrieved.

    The dropped rows are written first (reason taken_down, one row a pair), then the files of pairs; so a rerun after a
    crash finds what is left to do.
    """
    affected = {path: _affected_rows(store, path, removed) for path in store.table_files("pairs")}
    pairs_of_removed = [r for rows in affected.values() for r in rows if removed & _ends(r)]
    count = _write_dropped_pairs(store, batch, pairs_of_removed, removed)
    if not any(affected.values()):
        return
    with_places = [r for rows in affected.values() for r in rows if not removed & _ends(r)]
    proposed = _proposed_negatives(params, store, encoders, with_places, removed)
    for path, rows in affected.items():
        if rows:
            refilled = {
                r["pair_id"]: None if removed & _ends(r) else refill_negatives(r, proposed[r["pair_id"]], removed)
                for r in rows
            }
            _rewrite(store, path, refilled)
    log.info("select: %d pairs taken down", count)


def _affected_rows(store: Store, path: Path, removed: Set[str]) -> list[dict[str, Any]]:
    """The rows of a file of pairs that name a removed image."""
    import pyarrow as pa

    ids, result = pa.array(sorted(removed), pa.string()), []
    for pairs in store.iter_blocks(path, "pairs", rows=ROW_GROUP_ROWS):
        result += pairs.filter(pa.array(_names_removed(pairs, ids))).to_pylist()
    return result


def _names_removed(pairs: pa.Table, ids: pa.Array) -> np.ndarray:
    """(n,) bool: the pairs that name one of some ids as query, target or negative."""
    import pyarrow.compute as pc

    result = np.zeros(pairs.num_rows, bool)
    for end in ENDS:
        result |= pc.is_in(pairs.column(end), value_set=ids).to_numpy()
    negatives = pairs.column("negative_image_ids").combine_chunks()
    is_named = pc.is_in(negatives.flatten(), value_set=ids).to_numpy(zero_copy_only=False)
    result[pc.list_parent_indices(negatives).to_numpy()[is_named]] = True
    return result


def _rewrite(store: Store, path: Path, changed: Mapping[str, Row | None]) -> None:
    """Write a file of pairs again: pair id -> the row in its place, or None for no row."""
    writer = TableWriter(path, "pairs")
    try:
        for pairs in store.iter_blocks(path, "pairs", rows=ROW_GROUP_ROWS):
            is_changed = names_any_id(pairs, changed, ["pair_id"]).to_numpy()
            start = 0
            for row in np.flatnonzero(is_changed).tolist():
                writer.add_table(pairs.slice(start, row - start))
                if (new := changed[pairs.column("pair_id")[row].as_py()]) is not None:
                    writer.add(dict(new))
                start = row + 1
            writer.add_table(pairs.slice(start))
        writer.close()
    except BaseException:
        writer.discard()
        raise


def read_lost_queries(store: Store, batch: str, removed: Set[str]) -> set[str]:
    """Queries that lost a pair to this batch's takedown, or to one of the batches right before it that added no pair:
    takedowns by hand, which leave it to the next run to find other pairs.
    """
    paths = [_taken_down_path(store, name) for name in [batch, *_batches_without_pairs(store, batch)]]
    details = store.read([p for p in paths if p.exists()], "dropped").column("detail").to_pylist()
    return {query for d in details if (query := json.loads(d).get("query"))} - removed


def _batches_without_pairs(store: Store, batch: str) -> list[str]:
    """The batches right before this one whose files hold no pair."""

    def order(name: str) -> tuple[int, ...]:
        return tuple(int(number) for number in name.split(".") if number.isdecimal())

    files = sorted((order(path.stem), path) for path in store.table_files("pairs"))
    earlier = [path for key, path in reversed(files) if key < order(batch)]
    return [path.stem for path in itertools.takewhile(lambda path: not store.count_rows(path, "pairs"), earlier)]


def _write_dropped_pairs(store: Store, batch: str, pairs: Sequence[Row], removed: Set[str]) -> int:
    """Add pairs to the batch's dropped rows of this reason, where an earlier try may have written some. Returns the
    count of all.

    A row names the pair's query where that stays, and never a removed image.
    """
    path = _taken_down_path(store, batch)
    rows = {r["key"]: r for r in (store.read(path, "dropped").to_pylist() if path.exists() else [])}
    for pair in pairs:
        query = pair["query_image_id"]
        detail = json.dumps({} if query in removed else {"query": query})
        key = pair["pair_id"]
        rows[key] = {"stage": "select", "batch": batch, "key": key, "reason": REASON, "detail": detail}
    if rows:
        store.write(path, [rows[key] for key in sorted(rows)], "dropped")
    return len(rows)


def _proposed_negatives(
    params: Params, store: Store, encoders: Sequence[str], pairs: Sequence[Row], removed: Set[str]
) -> dict[str, list[tuple[str, float]]]:
    """pair id -> (image id, similarity to the target) of every image that may be its negative, the nearest first.

    Args:
        pairs: rows of table `pairs`.
        removed: images that may be none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ends = [pa.chunked_array([pa.array((r[c] for r in pairs), pa.string(), size=len(pairs))]) for c in ENDS]
    pair_images = encode_ids(ends)[0]
    memory = WorkingMemory(params.select.memory_mib << 20)
    none = store.read([], "neighbours", [*ENDS, "similarity", "rank"], encoded=["query_image_id"])
    tables = []
    for encoder in encoders:
        files = sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))
        parts = [rows_with_queries(table, pair_images) for table in read_mined(store, files, memory)]
        parts = [t.filter(pc.invert(names_any_id(t, removed, ["target_image_id"]))) for t in parts]
        tables.append(pa.concat_tables(parts) if parts else none)
    image_ids, columns = encode_ids([*ends, *(t.column(c) for t in tables for c in ENDS)])
    retrieved: dict[str, Retrieved] = {
        encoder: RetrievedRows(mined_rows(table, *columns[2 * n + 2 : 2 * n + 4]), len(image_ids))
        for n, (encoder, table) in enumerate(zip(encoders, tables, strict=True))
    }
    mined_by = np.array([[e in r["mined_by"] for e in MINER_ROLES] for r in pairs], bool)
    ranks = np.where(mined_by.reshape(-1, len(MINER_ROLES)), np.int32(0), np.int32(ABSENT))
    c = Candidates(image_ids, columns[0], columns[1], ranks, ranks)
    vectors = open_vectors(store, encoders, image_ids)
    result: dict[str, list[tuple[str, float]]] = {r["pair_id"]: [] for r in pairs}
    for block in pair_blocks(c, retrieved, vectors, memory):
        part = c.take(np.arange(block.start, block.stop))
        _, negatives = hard_negatives(part, retrieved, vectors, negative_rules(params, None))
        images = image_ids.take(pa.array(negatives.images))
        rows = zip(negatives.pairs.tolist(), images.to_pylist(), negatives.similarities.tolist(), strict=True)
        for pair, image, similarity in rows:
            result[pairs[block.start + pair]["pair_id"]].append((image, similarity))
    return result


def _ends(row: Row) -> set[str]:
    return {row["query_image_id"], row["target_image_id"]}


def _images(row: Row) -> set[str]:
    return _ends(row) | set(row["negative_image_ids"])


def _taken_down_path(store: Store, batch: str) -> Path:
    """The file of pairs that were taken down, beside the batch's other dropped rows."""
    return store.dropped_path("select", batch, 0)
