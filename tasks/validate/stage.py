"""Validate: the gate after a table. Great Expectations checks the run's new rows and a one-row table of its figures.

Reads    one table (images, pairs, triplets), the dropped rows and the report of the stage before it, version.json of
         the last version, the suite expectations/<table>.json.
Writes   reports/validation/<table>.json, data/quarantine/<table> (rows that break a row rule, which leave the table,
         and which rule), and Great Expectations' Data Docs in reports/data_docs.
Numbers  `$PARAMETER` entries of a suite are keys of `validate.<table>`, or limits of the stages before: ingest's
         max_side_px, mine's windows and neighbours, judge's threshold and instructions_min (tasks/validate/numbers.py).

A row that breaks a rule of severity `warning` is quarantined and the run goes on (docs/decisions/0088). What makes the
whole batch untrustworthy ends the run with DataError, exit code 65: an expectation of severity `critical` that does not
hold, among them the share of quarantined rows. A run without new rows passes. The cost follows what the run added: of
earlier versions only keys are read. Importing Great Expectations takes 2 to 3 s, a check 0.1 s.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.names import batch_name
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.atomic import write_bytes
from tasks.validate.failures import Checked, check_row, failing_numbers, failure_row, is_row_rule, quarantine_rows
from tasks.validate.figures import RunReports, finite, last_figures, read_reports, run_figures
from tasks.validate.numbers import relaxed_limits, suite_numbers
from tasks.validate.quarantine import earlier_rows, rules_path, take_out, withdraw_quarantined
from tasks.validate.rows import KEYS, ROWS, Context, Table, with_repeats
from tasks.validate.suites import SuiteRun, read_suite


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
        no_paths = [s.name for s in params.ingest.sources if "://" in s.path or s.kind_of_path == "table"]
        return Context(known, path_free_sources=frozenset(no_paths))
    image_ids, new_image_ids = (
        frozenset(store.read_table("images", ["image_id"], of).column("image_id").to_pylist()) for of in (None, batch)
    )
    reviewed = [store.reviewed_path(batch)] if table == "triplets" and store.reviewed_path(batch).exists() else []
    reviewed_ids = frozenset(store.read(reviewed, "triplets", ["triplet_id"]).column("triplet_id").to_pylist())
    roles = frozenset(map(str, params.mine.windows))
    return Context(known, image_ids, new_image_ids, roles, reviewed_ids=reviewed_ids)


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        figures: of the batch.
        failures: expectations that stop the batch; empty where it goes on.
        broken_rules: row rules that rows break, in the form of `failures`.
        bad: numbers of the rows that leave the table, ascending.
        rules: rows of table `quarantine`.
        checks: every expectation, with what was observed.
    """

    figures: dict[str, float]
    failures: list[dict[str, Any]]
    broken_rules: list[dict[str, Any]]
    bad: list[int]
    rules: list[dict[str, Any]]
    checks: list[dict[str, Any]]


def check(suite_run: SuiteRun, checked: Checked, reports: RunReports, store: Store, earlier: int) -> Verdict:
    """Check the rows one by one, then the figures of those that are good.

    Args:
        suite_run: of the table's suite.
        checked: the new rows.
        reports: of the run's stages.
        store: of the run.
        earlier: rows that an earlier call has quarantined, a count.
    """
    row_results = suite_run.run_half("rows", checked.rows)
    failing = [result for result in row_results if not result["success"] or failing_numbers(result)]
    rules = [result for result in failing if is_row_rule(result)]
    bad = sorted({number for result in rules for number in failing_numbers(result)})
    measured = [number for number, row in enumerate(checked.rows) if not row.get("is_reviewed")]  # made by models
    good = [checked.rows[number] for number in measured if number not in set(bad)]
    figures = run_figures(checked.table, good, reports, len(bad) + earlier)
    limits = relaxed_limits(checked.numbers, figures)
    stopping = [("rows", result) for result in failing if not is_row_rule(result) and not result["success"]]
    figure_results = suite_run.run_half("figures", [figures], limits)
    stopping += [("figures", result) for result in figure_results if not result["success"]]
    results = [("figures", result) for result in figure_results] + [("rows", result) for result in row_results]
    return Verdict(
        figures=figures,
        failures=[failure_row(result, half, checked, store) for half, result in stopping],
        broken_rules=[failure_row(result, "rows", checked, store) for result in rules],
        bad=bad,
        rules=[row for result in failing for row in quarantine_rows(result, checked)],
        checks=[check_row(result, half, checked, finite(figures)) for half, result in results],
    )


def failure_line(failure: dict[str, Any]) -> str:
    """One failing expectation as a sentence."""
    return (
        f"{failure['column']}: {failure['expectation']}: observed {failure['observed']}, "
        f"expected {failure['expected']}, last version {failure['last']}"
    )


def require_held(table: Table, batch: str, verdict: Verdict, docs: Path) -> None:
    """Raise the gate's error where something stops the batch.

    Raises:
        DataError: names each with observed against expected.
    """
    if verdict.failures:
        lines = [failure_line(f) for f in [*verdict.failures, *verdict.broken_rules]]
        raise DataError(
            f"gate '{table}' stopped batch {batch}: {'; '.join(lines)}. See reports/validation/{table}.json and "
            f"{docs / 'index.html'}"
        )


def run(params: Params, store: Store, table: Table) -> StageReport:
    """Check one table; see the module's docstring.

    Raises:
        DataError: an expectation that stops the batch does not hold; names each with observed against expected.
        ConfigError: the suite names a number that no parameter gives.
    """
    if table not in KEYS:
        raise ConfigError(f"validate: no table {table!r}; known: {sorted(KEYS)}")
    withdraw_quarantined(params, store, table)
    batch, docs, key = batch_name(params), store.folder("reports", "data_docs"), KEYS[table]
    new = store.read_table(table, batch=batch).to_pylist()
    context, reports = read_context(params, store, table, [row[key] for row in new]), read_reports(store, table, batch)
    earlier, earlier_rules = earlier_rows(store, table, batch)
    count, numbers = len(new) + len(earlier), suite_numbers(params, table)
    suite = read_suite(store.folder("expectations", f"{table}.json"), numbers)
    rows = with_repeats(ROWS[table](new, context), key)
    suite_run = SuiteRun(suite, key)
    checked = Checked(table, batch, rows, numbers, last_figures(reports.last_version, table))
    verdict = check(suite_run, checked, reports, store, len(earlier))
    suite_run.write_docs(docs)
    store.write(rules_path(store, table, batch), [*earlier_rules, *verdict.rules], "quarantine")
    if not verdict.failures:
        take_out(store, table, batch, verdict.bad, earlier)
    write_gate_report(store, checked, verdict, reports, len(earlier))
    require_held(table, batch, verdict, docs)
    quarantined = len(verdict.bad) + len(earlier)
    out = StageReport("validate", read=count, written=quarantined, new=count, done=count)
    out.reused, out.figures = len(context.known_ids), {f"{table}_{k}": v for k, v in finite(verdict.figures).items()}
    if quarantined:
        broken = sorted({f"{rule['column']} ({rule['key']})" for rule in [*earlier_rules, *verdict.rules]})
        shown = ", ".join(broken[:3]) + (" ..." if len(broken) > 3 else "")
        out.notes.append(f"{quarantined} of {count} new rows of table {table} are quarantined: {shown}")
    return out


def write_gate_report(store: Store, checked: Checked, verdict: Verdict, reports: RunReports, earlier: int) -> None:
    """Write reports/validation/<table>.json.

    Args:
        earlier: rows that an earlier call has quarantined, a count.
    """
    suite_halves = json.loads(store.folder("expectations", f"{checked.table}.json").read_text())
    report = {
        "table": checked.table,
        "batch": checked.batch,
        "is_valid": not verdict.failures,
        "rows": len(checked.rows),
        "quarantined": len(verdict.bad) + earlier,
        "figures": finite(verdict.figures),
        "last_version": reports.last_version["version"] if reports.last_version else None,
        "last_figures": checked.last,
        "expectations": sum(len(half["expectations"]) for half in suite_halves.values()),
        "checks": verdict.checks,
        "failures": verdict.failures,
        "broken_rules": verdict.broken_rules,
        "notes": list(reports.notes),
        "weeks": {**(reports.last_version or {}).get("weeks", {}), checked.batch: reports.week} if reports.week else {},
    }
    content = json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True, default=str)
    write_bytes(store.folder("reports", "validation", f"{checked.table}.json"), content.encode())
