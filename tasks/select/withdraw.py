"""Withdraw pairs and negatives whose images were taken down, and fill the places of the negatives."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config import ENCODER_ROLES, Params
from tasks.fingerprints.takedown import REASON
from tasks.select.candidates import ABSENT, Candidates
from tasks.select.negatives import Retrieved, hard_negatives, negative_rules
from tasks.select.read_neighbours import ENDS, mined_rows, read_mined, read_vectors, rows_with_queries
from tasks.store import Store
from tasks.store.id_order import encode_ids
from tasks.store.tables import names_any_id

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
    files = store.table_files("pairs")
    affected = {path: [r for r in store.read(path, "pairs").to_pylist() if removed & _images(r)] for path in files}
    count = _write_dropped_pairs(store, batch, [r for rows in affected.values() for r in rows if removed & _ends(r)])
    if not any(affected.values()):
        return
    with_places = [r for rows in affected.values() for r in rows if not removed & _ends(r)]
    proposed = _proposed_negatives(params, store, encoders, with_places, removed)
    for path in files:
        if affected[path]:
            rest = [r for r in store.read(path, "pairs").to_pylist() if not removed & _ends(r)]
            refilled = [
                refill_negatives(r, proposed[r["pair_id"]], removed) if removed & _images(r) else r for r in rest
            ]
            store.write(path, refilled, "pairs")
    log.info("select: %d pairs taken down", count)


def read_lost_queries(store: Store, batch: str, removed: Set[str]) -> set[str]:
    """Queries that lost a pair to this batch's takedown."""
    path = _taken_down_path(store, batch)
    details = store.read(path, "dropped").column("detail").to_pylist() if path.exists() else []
    return {json.loads(d)["query"] for d in details} - removed


def _write_dropped_pairs(store: Store, batch: str, pairs: Sequence[Row]) -> int:
    """Add pairs to the batch's dropped rows of this reason, where an earlier try may have written some. Returns the
    count of all.
    """
    path = _taken_down_path(store, batch)
    rows = {r["key"]: r for r in (store.read(path, "dropped").to_pylist() if path.exists() else [])}
    for pair in pairs:
        detail = json.dumps({"query": pair["query_image_id"], "target": pair["target_image_id"]})
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
    tables = []
    for encoder in encoders:
        files = sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))
        parts = [rows_with_queries(read_mined(store, path), pair_images) for path in files]
        parts = [t.filter(pc.invert(names_any_id(t, removed, ["target_image_id"]))) for t in parts]
        tables.append(pa.concat_tables(parts) if parts else read_mined(store, []))
    image_ids, columns = encode_ids([*ends, *(t.column(c) for t in tables for c in ENDS)])
    retrieved = {
        encoder: Retrieved(mined_rows(table, *columns[2 * n + 2 : 2 * n + 4]), len(image_ids))
        for n, (encoder, table) in enumerate(zip(encoders, tables, strict=True))
    }
    mined_by = np.array([[e in r["mined_by"] for e in ENCODER_ROLES] for r in pairs], bool)
    ranks = np.where(mined_by.reshape(-1, len(ENCODER_ROLES)), np.int32(0), np.int32(ABSENT))
    c = Candidates(image_ids, columns[0], columns[1], ranks, ranks)
    vectors = read_vectors(store, encoders, image_ids)
    negatives = hard_negatives(c, retrieved, vectors, negative_rules(params, None))
    images = image_ids.take(pa.array(negatives.images))
    result: dict[str, list[tuple[str, float]]] = {r["pair_id"]: [] for r in pairs}
    rows = zip(negatives.pairs.tolist(), images.to_pylist(), negatives.similarities.tolist(), strict=True)
    for pair, image, similarity in rows:
        result[pairs[pair]["pair_id"]].append((image, similarity))
    return result


def _ends(row: Row) -> set[str]:
    return {row["query_image_id"], row["target_image_id"]}


def _images(row: Row) -> set[str]:
    return _ends(row) | set(row["negative_image_ids"])


def _taken_down_path(store: Store, batch: str) -> Path:
    """The file of pairs that were taken down, beside the batch's other dropped rows."""
    return store.dropped_path("select", batch, 0)
