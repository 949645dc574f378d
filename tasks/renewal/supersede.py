"""Take rows of earlier batches away once this run has made them anew.

Order: the new rows are there first; then what becomes of published triplets is noted as dropped rows (reason renewed);
then the old rows go. So a rerun after a crash finds what is left to do, and no row is lost. Files of earlier versions
are rewritten under a temporary name and renamed: the objects that DVC keeps of them are not touched.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import DataError
from tasks.locks import exclusive, lock_wait_s
from tasks.reasons import RENEWED, REVIEWED
from tasks.renewal.makers import MADE
from tasks.store import Store
from tasks.store.tables import names_any_id

if TYPE_CHECKING:
    import pyarrow as pa

RENEWED_CHUNK = 99_999  # number of a batch's file with dropped rows of reason renewed


LOST_ROWS = 3  # so many rows may be lost, whatever share that is


def supersede(store: Store, stage: str, batch: str, keys: Collection[str], limit: tuple[str, float]) -> int:
    """Remove a stage's accepted and rejected rows of other batches about some images or pairs; returns their count.

    Args:
        store: of the worktree.
        stage: recaption, caption or judge.
        batch: the run's; its rows stay.
        keys: image ids of recaption, else pair ids.
        limit: name and value of the largest share of accepted rows that may be lost.
    Raises:
        DataError: more rows are lost; nothing was removed.
    """
    if not keys:
        return 0
    made, wait_s = MADE[stage], lock_wait_s()
    lock = store.folder(".run", "locks", f"renew-{made.table}")
    problem = f"{lock}: another part has been removing renewed rows for {wait_s:.0f} s; end it, then run again"
    with exclusive(lock, wait_s, problem):  # parts remove rows of the same files
        own = {*store.batch_files(made.table, batch), *store.dropped_files(made.stage, batch)}
        files = [path for path in store.table_files(made.table) if path not in own]
        _require_kept(store, stage, batch, files, keys, limit)
        if made.table == "triplets":
            _note_replaced(store, batch, files, keys)
        count = sum(_remove(store, path, made.table, made.key, keys) for path in files)
        dropped = [path for path in store.dropped_files(made.stage) if path not in own]
        return count + sum(_remove(store, path, "dropped", "key", keys) for path in dropped)


def _require_kept(
    store: Store, stage: str, batch: str, files: Collection[Path], keys: Collection[str], limit: tuple[str, float]
) -> None:
    """Raise DataError where too many accepted rows of before have no accepted row now."""
    made, (name, share_max) = MADE[stage], limit
    before, now = (_keys_in(store, paths, stage, keys) for paths in (files, store.batch_files(made.table, batch)))
    lost = len(before - now)
    if lost > LOST_ROWS and lost > share_max * len(before):
        raise DataError(
            f"{name}: the makers of now reject {lost} of {len(before)} rows that were accepted before, more than the "
            f"share of {share_max:g}; look at data/dropped/{made.stage}/{batch}-*.parquet; mend model or prompt, or "
            "raise it and start another run"
        )


def _keys_in(store: Store, paths: Collection[Path], stage: str, keys: Collection[str]) -> set[str]:
    """Those of some keys that accepted rows in these files are about."""
    made = MADE[stage]
    found = set[str]()
    for path in paths:
        table = store.read(path, made.table, [made.key])
        found.update(table.filter(names_any_id(table, keys, [made.key])).column(made.key).to_pylist())
    return found


def _remove(store: Store, path: Path, schema: str, column: str, keys: Collection[str]) -> int:
    """Rewrite a file without its rows about `keys`; a file without such rows is left alone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = store.read(path, schema, [column, *(["reason"] if schema == "dropped" else [])])
    if schema == "dropped":  # key: of the pair, or pair:style, pair:image
        subjects = pc.list_element(pc.split_pattern(names.column("key"), ":"), 0)
        named = pc.and_(
            names_any_id(pa.table({column: subjects}), keys, [column]),
            pc.invert(pc.is_in(names.column("reason"), value_set=pa.array([RENEWED, *REVIEWED]))),
        )
    else:
        named = names_any_id(names, keys, [column])
    if not pc.any(named).as_py():
        return 0
    table = store.read(path, schema)
    return table.num_rows - store.write(path, table.filter(pc.invert(named)), schema)


def _note_replaced(store: Store, batch: str, files: Collection[Path], keys: Collection[str]) -> None:
    """Write a dropped row for every old triplet about `keys` whose id this run's triplets do not have."""
    columns = ["triplet_id", "pair_id"]
    now = _rows_about(store.read_table("triplets", columns, batch), keys)
    new_ids = {row["pair_id"]: row["triplet_id"] for row in now}
    rows = {}
    for path in files:
        for row in _rows_about(store.read(path, "triplets", columns), keys):
            becomes = new_ids.get(row["pair_id"])
            if becomes != row["triplet_id"]:
                detail = json.dumps({"pair_id": row["pair_id"], "becomes": becomes}, sort_keys=True)
                key = row["triplet_id"]
                rows[key] = {"stage": "judge", "batch": batch, "key": key, "reason": RENEWED, "detail": detail}
    path = store.dropped_path("judge", batch, RENEWED_CHUNK)
    known = {row["key"]: row for row in (store.read(path, "dropped").to_pylist() if path.exists() else [])}
    if rows.keys() - known.keys():
        known |= rows
        store.write(path, [known[key] for key in sorted(known)], "dropped")


def _rows_about(table: pa.Table, keys: Collection[str]) -> list[dict[str, Any]]:
    return list(table.filter(names_any_id(table, keys, ["pair_id"])).to_pylist())
