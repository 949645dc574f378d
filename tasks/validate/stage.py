"""Validate: the gate after a table. Great Expectations checks this run's new rows and a one-row table of its figures.

Reads one table (images, pairs, triplets), what was dropped, the last version's version.json, and the suite
expectations/<table>.json, whose `$PARAMETER` numbers come from params.yaml (`validate.<table>`; `max_side_px` from
ingest). Writes reports/validation/<table>.json, data/quarantine/<table>/<batch>.parquet (failing rows' ids), and GX's
Data Docs in reports/data_docs. A failing expectation ends the run: DataError, exit 65. A run without new rows is green.
It costs what
the run added: of earlier versions only ids are read. Importing Great Expectations takes 2 to 3 s, the check itself 0.1
s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.names import batch_name
from tasks.reasons import UNREADABLE_REASONS
from tasks.records import StageReport
from tasks.store import Store
from tasks.validate.examples import copies, rows_examples, worst_captions
from tasks.validate.figures import figures_of, finite, last_figures
from tasks.validate.rows import KEYS, STAGE_BEFORE, Table, images_rows, pairs_rows, triplets_rows
from tasks.validate.suites import check, failing_keys, failure_of, frame_of, read_suite

if TYPE_CHECKING:
    pass


# --- new rows, with what the suites need to know about each ----------------------------------------------------------


# --- the run's figures -----------------------------------------------------------------------------------------------


# --- Great Expectations ----------------------------------------------------------------------------------------------


# --- examples for figures: rows a person should look at --------------------------------------------------------------


# --- the stage -------------------------------------------------------------------------------------------------------


def last_version(root: Path, batch: str) -> dict[str, Any] | None:
    """version.json of the version that this run continues; None for the first."""
    path = root / "version.json"
    version = json.loads(path.read_text()) if path.exists() else None
    return version if version and version["version"] != batch else None


def run(params: Params, store: Store, table: Table) -> StageReport:
    """Check one table; see the module's docstring.

    Raises:
        DataError: an expectation does not hold; lists each with observed against expected.
        ConfigError: the suite asks for a number that params.yaml lacks.
    """
    if table not in KEYS:
        raise ConfigError(f"validate: no table {table!r}; known: {sorted(KEYS)}")
    batch, key = batch_name(params), KEYS[table]
    given: dict[str, float] = getattr(params.validate_, table).model_dump()
    if table == "images":
        given.setdefault("max_side_px", params.ingest.max_side_px)
    suite = read_suite(store.folder("expectations", f"{table}.json"), given)
    new = store.read_table(table, batch=batch).to_pylist()
    new_keys = {r[key] for r in new}
    all_ids = store.read_table(table, [key]).column(key).to_pylist()
    known = set(all_ids) - new_keys
    if len(all_ids) != len(known) + len(new):  # some new id stands in an earlier version too
        counted: dict[str, int] = {}
        for i in all_ids:
            counted[i] = counted.get(i, 0) + 1
        own: dict[str, int] = {}
        for r in new:
            own[r[key]] = own.get(r[key], 0) + 1
        known |= {i for i in new_keys if counted[i] > own[i]}
    images = (
        set(store.read_table("images", ["image_id"]).column("image_id").to_pylist()) if table != "images" else set()
    )
    rows = (
        images_rows(new, known)
        if table == "images"
        else pairs_rows(new, known, images)
        if table == "pairs"
        else triplets_rows(new, known, images)
    )

    last = last_version(store.root, batch)
    before = STAGE_BEFORE[table]
    reasons: dict[str, int] = {}
    for reason in store.read_dropped(before, batch).column("reason").to_pylist():
        reasons[reason] = reasons.get(reason, 0) + 1
    report_before = store.read_reports().get(before)
    captioned = store.read_table("captioned", ["pair_id"], batch).num_rows if table == "triplets" else 0
    figures = figures_of(table, rows, reasons, report_before.figures if report_before else {}, last, captioned)

    docs = store.folder("reports", "data_docs")
    frames = {"rows": frame_of(rows, suite["rows"]), "figures": frame_of([figures], suite["figures"])}
    results = check(frames, suite, given, key, docs)
    previous = last_figures(last, table)
    failures, quarantined = [], []
    for half, outcomes in results.items():
        for result in outcomes:
            if result["success"]:
                continue
            config = result["expectation_config"]
            keys = failing_keys(result, key) if half == "rows" else []
            column = str(config["kwargs"].get("column"))
            if half == "rows":
                examples = rows_examples(rows, key, keys)
            elif table == "images":
                examples = [
                    e
                    for e in copies(store, batch)
                    if (e["reason"] in UNREADABLE_REASONS) == (column == "unreadable_share")
                ]
            elif column.startswith("median_caption_cosine"):
                examples = worst_captions(
                    store, batch, store.read_table("images", ["image_id", "shard"], batch).to_pylist()
                )
            else:
                examples = rows_examples(rows, key, [str(r[key]) for r in rows])
            failures.append(failure_of(result, half, given, previous, examples, len(rows)))
            values = {str(r[key]): r.get(column) for r in rows} if keys else {}
            quarantined += [
                {
                    "table": table,
                    "batch": batch,
                    "key": k,
                    "expectation": config["type"],
                    "column": column,
                    "observed": str(values.get(k)),
                }
                for k in keys
            ]
    store.write(store.folder("data", "quarantine", table, f"{batch}.parquet"), quarantined, "quarantine")
    report = {
        "table": table,
        "batch": batch,
        "is_valid": not failures,
        "rows": len(rows),
        "figures": finite(figures),
        "last_version": last["version"] if last else None,
        "last_figures": previous,
        "expectations": sum(len(r) for r in results.values()),
        "failures": failures,
    }
    content = json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True, default=str)
    store.write_bytes(store.folder("reports", "validation", f"{table}.json"), content.encode())
    if failures:
        lines = [
            f"{f['column']}: {f['expectation']}: observed {f['observed']}, expected {f['expected']}, last version {f['last']}"
            for f in failures
        ]
        raise DataError(
            f"gate '{table}' holds batch {batch}: "
            + "; ".join(lines)
            + f". See reports/validation/{table}.json and {docs / 'index.html'}"
        )
    named = {f"{table}_{k}": v for k, v in finite(figures).items()}
    return StageReport(
        "validate",
        read=len(rows),
        written=len(quarantined),
        new=len(rows),
        done=len(rows),
        reused=len(known),
        figures=named,
    )
