"""Withdraw pairs and negatives whose images were taken down, and fill the gaps."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.config import ENCODER_ROLES, Params
from tasks.fingerprints.takedown import REASON
from tasks.select.candidates import ABSENT, Candidates
from tasks.select.negatives import Retrieved
from tasks.select.read_neighbours import _mined, _negatives_of, _read_mined, _read_vectors, _rows_of
from tasks.store import Store
from tasks.store.id_order import encode_ids
from tasks.store.tables import names_any_id

if TYPE_CHECKING:
    pass


log = logging.getLogger(__name__)


def with_negatives(row: Mapping[str, Any], proposed: Sequence[tuple[str, float]], gone: Set[str]) -> dict[str, Any]:
    """A pair whose negatives that are gone have given their places to the nearest proposed ones; the rest stay, in
    order, and those stand last.
    """
    kept = [(i, s) for i, s in zip(row["negative_image_ids"], row["negative_similarity"], strict=True) if i not in gone]
    there = {i for i, _ in kept}
    kept += [(i, s) for i, s in proposed if i not in there and i not in gone][
        : len(row["negative_image_ids"]) - len(kept)
    ]
    return {**row, "negative_image_ids": [i for i, _ in kept], "negative_similarity": [s for _, s in kept]}


def _withdraw_pairs(params: Params, store: Store, batch: str, encoders: Sequence[str], gone: Set[str]) -> None:
    """Drop the pairs of images that are taken down, and fill their places as negative from what the pair's encoders
    retrieved.

    What goes is noted first (reason taken_down, one row a pair), then the files are written anew.
    """
    files = store.table_files("pairs")
    noted = {
        r["key"]: r for r in store.read([p for p in [_taken_path(store, batch)] if p.exists()], "dropped").to_pylist()
    }
    found = {path: [r for r in store.read(path, "pairs").to_pylist() if gone & _images_of(r)] for path in files}
    for row in (r for rows in found.values() for r in rows):
        if gone & {row["query_image_id"], row["target_image_id"]}:
            detail = json.dumps({"query": row["query_image_id"], "target": row["target_image_id"]})
            noted[row["pair_id"]] = {
                "stage": "select",
                "batch": batch,
                "key": row["pair_id"],
                "reason": REASON,
                "detail": detail,
            }
    if noted:
        store.write(_taken_path(store, batch), [noted[k] for k in sorted(noted)], "dropped")
    kept = [r for rows in found.values() for r in rows if not gone & {r["query_image_id"], r["target_image_id"]}]
    if not any(found.values()):
        return
    proposed = _proposed_for(params, store, encoders, kept, gone)
    for path, some in found.items():
        if some:
            rows = [
                r
                for r in store.read(path, "pairs").to_pylist()
                if not gone & {r["query_image_id"], r["target_image_id"]}
            ]
            store.write(
                path,
                [with_negatives(r, proposed[r["pair_id"]], gone) if gone & _images_of(r) else r for r in rows],
                "pairs",
            )
    log.info("select: %d pairs taken down", len(noted))


def _proposed_for(
    params: Params, store: Store, encoders: Sequence[str], pairs: Sequence[Mapping[str, Any]], gone: Set[str]
) -> dict[str, list[tuple[str, float]]]:
    """pair id -> every image that may be its negative and how near to the target it is, the nearest first.

    Args:
        pairs: rows of table `pairs`.
        gone: images that are none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ends = [
        pa.chunked_array([pa.array((r[c] for r in pairs), pa.string(), size=len(pairs))])
        for c in ("query_image_id", "target_image_id")
    ]
    asked = encode_ids(ends)[0]
    tables = []
    for encoder in encoders:
        files = sorted(store.folder("data", "neighbours", encoder).glob("*.parquet"))
        some = [_rows_of(_read_mined(store, p), asked) for p in files]
        some = [t.filter(pc.invert(names_any_id(t, gone, ["target_image_id"]))) for t in some]
        tables.append(pa.concat_tables(some) if some else _read_mined(store, []))
    names, numbers = encode_ids([*ends, *(t.column(c) for t in tables for c in ("query_image_id", "target_image_id"))])
    retrieved = {}
    for n, (encoder, table) in enumerate(zip(encoders, tables, strict=True)):
        retrieved[encoder] = Retrieved(_mined(table, *numbers[2 * n + 2 : 2 * n + 4]), len(names))
    mined_by = np.array([[e in r["mined_by"] for e in ENCODER_ROLES] for r in pairs], bool).reshape(
        -1, len(ENCODER_ROLES)
    )
    ranks = np.where(mined_by, np.int32(0), np.int32(ABSENT))
    c = Candidates(names, numbers[0], numbers[1], ranks, ranks)
    found = _negatives_of(c, retrieved, _read_vectors(store, encoders, names), params, None)
    out: dict[str, list[tuple[str, float]]] = {r["pair_id"]: [] for r in pairs}
    for pair, image, similarity in zip(
        found.pairs.tolist(), names.take(pa.array(found.images)).to_pylist(), found.similarities.tolist(), strict=True
    ):
        out[pairs[pair]["pair_id"]].append((image, similarity))
    return out


def _images_of(row: Mapping[str, Any]) -> set[str]:
    return {row["query_image_id"], row["target_image_id"], *row["negative_image_ids"]}


def _taken_path(store: Store, batch: str) -> Path:
    """Beside the batch's own dropped rows."""
    return store.dropped_path("select", batch, 0)


def _read_lost(store: Store, batch: str, gone: Set[str]) -> set[str]:
    """Queries that lost a pair to this batch's takedown."""
    path = _taken_path(store, batch)
    details = store.read(path, "dropped").column("detail").to_pylist() if path.exists() else []
    return {json.loads(d)["query"] for d in details} - gone
