"""Validate: the gate after a table. Great Expectations checks the run's new rows and a one-row table of its figures.

Reads    one table (images, pairs, triplets), the dropped rows and the report of the stage before it, version.json of
         the last version, the suite expectations/<table>.json.
Writes   reports/validation/<table>.json, data/quarantine/<table>/<batch>.parquet (keys of failing rows), and Great
         Expectations' Data Docs in reports/data_docs.
Numbers  `$PARAMETER` entries of a suite are keys of `validate.<table>`, or limits of the stages before: ingest's
         max_side_px, mine's windows and neighbours, judge's threshold and instructions_min (tasks/validate/numbers.py).

An expectation that does not hold ends the run: DataError, exit code 65. A run without new rows passes. The cost follows
what the run added: of earlier versions only keys are read. Importing Great Expectations takes 2 to 3 s, a check 0.1 s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.names import batch_name
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.atomic import write_bytes
from tasks.validate.failures import Checked, failure_row, quarantine_rows
from tasks.validate.figures import finite, last_figures, read_reports, run_figures
from tasks.validate.numbers import suite_numbers
from tasks.validate.rows import KEYS, ROWS, Context, Table
from tasks.validate.suites import HALVES, read_suite, run_suite


def read_context(params: Params, store: Store, table: Table, new_keys: Sequence[str]) -> Context:
    """What the gate must know beside the new rows.

    Args:
        new_keys: keys of this run's rows. One that earlier versions have too is in `known_ids`.
    """
    batch, key = batch_name(params), KEYS[table]
    all_keys = store.read_table(table, [key]).column(key).to_pylist()
    known = set(all_keys) - set(new_keys)
    if len(all_keys) != len(known) + len(new_keys):
        earlier = Counter(all_keys) - Counter(new_keys)
        known |= set(earlier)
    if table == "images":
        return Context(known)
    image_ids, new_image_ids = (
        frozenset(store.read_table("images", ["image_id"], of).column("image_id").to_pylist()) for of in (None, batch)
    )
    return Context(known, image_ids, new_image_ids, frozenset(map(str, params.mine.windows)))


def require_held(table: Table, batch: str, failures: Sequence[dict[str, Any]], docs: str) -> None:
    """Raise the gate's error where an expectation does not hold.

    Raises:
        DataError: names each with observed against expected.
    """
    if failures:
        lines = [
            f"{f['column']}: {f['expectation']}: observed {f['observed']}, expected {f['expected']}, "
            f"last version {f['last']}"
            for f in failures
        ]
        raise DataError(
            f"gate '{table}' holds batch {batch}: {'; '.join(lines)}. See reports/validation/{table}.json and {docs}"
        )


def run(params: Params, store: Store, table: Table) -> StageReport:
    """Check one table; see the module's docstring.

    Raises:
        DataError: an expectation does not hold; names each with observed against expected.
        ConfigError: the suite names a number that no parameter gives.
    """
    if table not in KEYS:
        raise ConfigError(f"validate: no table {table!r}; known: {sorted(KEYS)}")
    batch, docs = batch_name(params), store.folder("reports", "data_docs")
    suite = read_suite(store.folder("expectations", f"{table}.json"), suite_numbers(params, table))
    new = store.read_table(table, batch=batch).to_pylist()
    context = read_context(params, store, table, [row[KEYS[table]] for row in new])
    rows, reports = ROWS[table](new, context), read_reports(store, table, batch)
    figures = run_figures(table, rows, reports)
    frames = {half: suite.frame(half, data) for half, data in zip(HALVES, (rows, [figures]), strict=True)}
    results = run_suite(suite, frames, KEYS[table], docs)
    checked = Checked(table, batch, rows, suite.numbers, last_figures(reports.last_version, table))
    failing = [(half, result) for half in HALVES for result in results[half] if not result["success"]]
    failures = [failure_row(result, half, checked, store) for half, result in failing]
    quarantined = [row for half, result in failing if half == "rows" for row in quarantine_rows(result, checked)]
    store.write(store.folder("data", "quarantine", table, f"{batch}.parquet"), quarantined, "quarantine")
    report = {
        "table": table,
        "batch": batch,
        "is_valid": not failures,
        "rows": len(rows),
        "figures": finite(figures),
        "last_version": reports.last_version["version"] if reports.last_version else None,
        "last_figures": checked.last,
        "expectations": sum(map(len, results.values())),
        "failures": failures,
    }
    content = json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True, default=str)
    write_bytes(store.folder("reports", "validation", f"{table}.json"), content.encode())
    require_held(table, batch, failures, str(docs / "index.html"))
    out = StageReport("validate", read=len(rows), written=len(quarantined), new=len(rows), done=len(rows))
    out.reused, out.figures = len(context.known_ids), {f"{table}_{k}": v for k, v in finite(figures).items()}
    return out
