"""A gate as the pages in Airflow's UI show it, and the rows that it quarantined.

    /megapairs/versions/<name>/quarantine?table=images     which rows left a table, the rule that each broke, its value

What a gate found is kept with the version: reports/validation/<table>.json and data/quarantine are outputs of dvc.yaml.
Great Expectations' own pages live as long as the run's worktree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import HTMLResponse

from tasks.browse.published import TABLES, PublishedVersion
from tasks.errors import TasksError
from tasks.pages.gate_words import is_share, observed_words, share_words, value_words
from tasks.pages.render import html

PAGE_ROWS = 100  # quarantined rows on a page, a count
BROKEN_ROWS = re.compile(r"(\d+) of (\d+) rows")
NUMBER = re.compile(r"\d+(\.\d+)?")


def shown_gate(report: Mapping[str, Any]) -> dict[str, Any]:
    """A gate's report as its template shows it; reports of older versions name only what failed."""
    recorded = report.get("checks")
    checks = recorded or [{**failure, "is_held": False} for failure in report.get("failures") or []]
    held, all_checks = sum(bool(check.get("is_held")) for check in checks), report.get("expectations", len(checks))
    count = f"{held} of {len(checks)} expectations hold"
    if not recorded:
        count = f"{len(checks)} of {all_checks} expectations broken; the others are not listed in this older report"
    verdict = "passed" if report.get("is_valid") else "stopped the run"
    figures, last = report.get("figures") or {}, report.get("last_figures") or {}
    return {
        "table": report.get("table", ""),
        "verdict": f"{verdict}; {count}",
        "rows": rows_words(report),
        "last_version": report.get("last_version") or "",
        "quarantined": int(report.get("quarantined") or 0),
        "checks": [shown_check(check, figures) for check in checks if not is_unbroken(check)],
        "unbroken": [shown_check(check, figures) for check in checks if is_unbroken(check)],
        "figures": [(name, value_words(name, figures[name]), value_words(name, last.get(name))) for name in figures],
        "examples": [
            {"column": str(rule.get("column")), **shown_example(example)}
            for rule in [*(report.get("failures") or []), *(report.get("broken_rules") or [])]
            for example in rule.get("examples") or []
        ],
    }


def is_unbroken(check: Mapping[str, Any]) -> bool:
    """Whether a check is a rule on single rows that no row breaks: a page names these last."""
    return check.get("table_half") == "rows" and bool(check.get("is_held"))


def shown_example(example: Mapping[str, Any]) -> dict[str, Any]:
    """A row that a person should look at: its key, and what the gate says of it as (name, value)."""
    details = {name: value for name, value in example.items() if name not in ("key", "image_ids")}
    return {
        "key": str(example.get("key", "")),
        "details": [(name, str(value)) for name, value in details.items() if value not in (None, "")],
    }


def rows_words(report: Mapping[str, Any]) -> str:
    """How many new rows the gate looked at, and how many of them it quarantined; empty in reports that do not say."""
    looked_at, out = report.get("rows"), int(report.get("quarantined") or 0)
    if looked_at is None:
        return ""
    share = f" ({share_words(out / looked_at)})" if out and looked_at else ""
    return f"{looked_at:,} new rows looked at, {out:,} quarantined{share}"


def shown_check(check: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
    """One expectation with its values in words; of a rule on rows also the share of rows that break it."""
    column, observed = str(check.get("column")), observed_words(check, figures)
    counts = BROKEN_ROWS.match(observed)
    if counts and int(counts[2]):
        observed = f"{share_words(int(counts[1]) / int(counts[2]))}, {observed}"
    words = {"observed": observed, "last": value_words(column, check.get("last"))}
    return {**check, **words, "expected": expected_words(column, str(check.get("expected") or "–"))}


def expected_words(column: str, expected: str) -> str:
    """What a check expects, in words: shares as percentages, a rule on a yes or no as one of these."""
    if is_share(column):
        return NUMBER.sub(lambda found: share_words(float(found[0])), expected)
    return {"one of False": "no", "one of True": "yes"}.get(expected, expected)


def quarantined_rows(version: PublishedVersion, table: str) -> list[dict[str, Any]]:
    """The rules that rows of a table broke, of this version and those before, the newest first.

    Returns:
        batch, key, column, rule (in words), observed, name (where an image came from; empty for other tables).
    Raises:
        DataError: the DVC cache lacks a file.
    """
    output = f"data/quarantine/{table}"
    rules = version.table(output, ["batch", "key", "expectation", "column", "observed"], folder="").to_pylist()
    names: dict[str, str] = {}
    if table == "images" and rules:
        rows = version.table(output, ["image_id", "source_uri"], folder="rows").to_pylist()
        names = {row["image_id"]: row["source_uri"] for row in rows}
    ordered = sorted(rules, key=lambda rule: (rule["key"], rule["column"]))
    ordered.sort(key=lambda rule: rule["batch"], reverse=True)
    return [{**rule, "rule": rule_words(rule["expectation"]), "name": names.get(rule["key"], "")} for rule in ordered]


def rule_words(kind: str) -> str:
    """expect_column_values_to_be_between -> 'be between'."""
    return kind.removeprefix("expect_column_values_to_").removeprefix("expect_column_").replace("_", " ")


def gate_router(version_named: Callable[[str, str], PublishedVersion]) -> APIRouter:
    """The routes of quarantined rows.

    Args:
        version_named: name and dataset -> the version; raises HTTPException 404.
    """
    router = APIRouter()

    @router.get("/versions/{name}/quarantine", response_class=HTMLResponse)
    @router.get("/d/{dataset}/versions/{name}/quarantine", response_class=HTMLResponse)
    def quarantine(
        name: str, table: str, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1, dataset: str = ""
    ) -> str:
        """The rows that a table's gate quarantined."""
        if table not in TABLES:
            raise HTTPException(404, "no such gate")
        try:
            rows = quarantined_rows(version_named(name, dataset), table)
        except TasksError as error:
            raise HTTPException(404, str(error)) from error
        start = (page - 1) * PAGE_ROWS
        return html(
            "quarantine.html.j2",
            name=name,
            table=table,
            total=len(rows),
            rows=rows[start : start + PAGE_ROWS],
            page=page,
            has_more=len(rows) > start + PAGE_ROWS,
        )

    return router
