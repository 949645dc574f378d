"""Rows that break a row rule leave their table for the quarantine; the batch goes on without them.

    data/quarantine/<table>/<batch>.parquet        which rule each row broke: key, expectation, column, observed
    data/quarantine/<table>/rows/<batch>.parquet   the rows themselves, as they stood in the table

Why shares stop a batch and rows do not: docs/decisions/0088.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.fingerprints.takedown import withdraw_rows, withdrawn_ids
from tasks.names import batch_name
from tasks.store import Store
from tasks.validate.rows import Table


def rules_path(store: Store, table: Table, batch: str) -> Path:
    """Where the broken rules of a batch's rows lie."""
    return store.folder("data", "quarantine", table, f"{batch}.parquet")


def rows_path(store: Store, table: Table, batch: str) -> Path:
    """Where the quarantined rows of a batch lie; the file exists only where there are any."""
    return store.folder("data", "quarantine", table, "rows", f"{batch}.parquet")


def earlier_rows(store: Store, table: Table, batch: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What an earlier call of this run's gate took out of the table: the rows, and the rules that they broke.

    A row that stands in the table again (its stage made the table anew) is no longer counted.
    """
    path = rows_path(store, table, batch)
    if not path.exists():
        return [], []
    present = store.read_table(table, batch=batch).to_pylist()
    rows = [row for row in store.read(path, table).to_pylist() if row not in present]
    keys = {str(next(iter(row.values()))) for row in rows}  # the first column of each table is its key
    rules = store.read(rules_path(store, table, batch), "quarantine").to_pylist()
    return rows, [rule for rule in rules if rule["key"] in keys]


def withdraw_quarantined(params: Params, store: Store, table: Table) -> None:
    """Remove quarantined rows that name what this run withdrew, and the rules that they broke."""
    words = withdrawn_ids(store, batch_name(params), kind=None)
    folder = store.folder("data", "quarantine", table)
    withdraw_rows(store, sorted(folder.glob("rows/*.parquet")), table, words)
    withdraw_rows(store, sorted(folder.glob("*.parquet")), "quarantine", words)


def take_out(store: Store, table: Table, batch: str, numbers: Sequence[int], earlier: list[dict[str, Any]]) -> None:
    """Move rows out of a batch's table; the files are replaced one by one, so that a killed call can be repeated.

    Args:
        store: of the run.
        table: which.
        batch: the run's.
        numbers: of the rows, in order of `Store.read_table(table, batch=batch)`.
        earlier: rows that are in the quarantine already.
    """
    if not numbers:
        return
    wanted = set(numbers)
    files = [(path, store.read(path, table)) for path in store.batch_files(table, batch)]
    every = [row for _, rows in files for row in rows.to_pylist()]
    store.write(rows_path(store, table, batch), [*earlier, *(every[n] for n in sorted(wanted))], table)
    first = 0
    for path, rows in files:
        kept = [n for n in range(rows.num_rows) if first + n not in wanted]
        first += rows.num_rows
        if len(kept) < rows.num_rows:
            store.write(path, rows.take(kept), table)
