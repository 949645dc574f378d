"""Expectations that do not hold, for people: observed, expected, the last version's value, example rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.store import Store
from tasks.validate.examples import EXAMPLES, dropped_examples, row_examples, worst_captions
from tasks.validate.rows import KEYS, Table
from tasks.validate.suites import Result


@dataclass(frozen=True)
class Checked:
    """What was checked.

    Attributes:
        table: which.
        batch: the run's.
        rows: its new rows.
        numbers: of the suite.
        last: the last version's figures.
    """

    table: Table
    batch: str
    rows: Sequence[Mapping[str, Any]]
    numbers: Mapping[str, float]
    last: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The table's key column."""
        return KEYS[self.table]


def column_of(result: Result) -> str:
    """The column that an expectation is about."""
    return str(result["expectation_config"]["kwargs"].get("column"))


def failing_keys(result: Result, key: str) -> list[str]:
    """Keys of the rows for which a row expectation does not hold."""
    failing = (result.get("result") or {}).get("unexpected_index_list") or []
    return [str(row[key]) for row in failing if isinstance(row, dict) and key in row]


def failing_numbers(result: Result) -> list[int]:
    """Numbers (`row_number`) of the rows for which a row expectation does not hold."""
    failing = (result.get("result") or {}).get("unexpected_index_list") or []
    return [int(row["row_number"]) for row in failing if isinstance(row, dict)]


def is_row_rule(result: Result) -> bool:
    """Whether a failing expectation quarantines rows, and does not stop the batch by itself.

    That is its severity `warning`; one that could not be evaluated names no row, so it stops the batch.
    """
    return result["expectation_config"].get("severity") == "warning" and bool(failing_numbers(result))


def expectation_name(kind: str) -> str:
    """An expectation's type in words: expect_column_values_to_be_between becomes 'be between'."""
    return kind.removeprefix("expect_column_values_to_").removeprefix("expect_column_").replace("_", " ")


def check_row(result: Result, half: str, checked: Checked, figures: Mapping[str, float]) -> dict[str, Any]:
    """One expectation, whether it holds or not, for the gate's report: what was expected and what was observed."""
    config, column = result["expectation_config"], column_of(result)
    count = (result.get("result") or {}).get("unexpected_count") or 0
    return {
        "column": column,
        "expectation": expectation_name(config["type"]),
        "table_half": half,
        "why": (config.get("meta") or {}).get("why", ""),
        "observed": figures.get(column) if half == "figures" else f"{count} of {len(checked.rows)} rows break it",
        "expected": expected_text(config["kwargs"], checked.numbers),
        "last": last_value(column, checked.last),
        "is_held": bool(result["success"]) and not (half == "rows" and count),
    }


def failure_row(result: Result, half: str, checked: Checked, store: Store) -> dict[str, Any]:
    """One failing expectation, for the gate's report, its error and its mail."""
    config, outcome, column = result["expectation_config"], result.get("result") or {}, column_of(result)
    if half == "figures":
        observed: Any = (outcome.get("partial_unexpected_list") or [None])[0]
    elif outcome:
        values = outcome.get("partial_unexpected_list", [])[:3]
        observed = f"{outcome.get('unexpected_count')} of {len(checked.rows)} rows, e.g. {values}"
    else:
        exception = (result.get("exception_info") or {}).get("exception_message", "could not be evaluated")
        observed = str(exception)[:300]
    return {
        "expectation": expectation_name(config["type"]),
        "type": config["type"],
        "table_half": half,
        "column": config["kwargs"].get("column"),
        "why": (config.get("meta") or {}).get("why", ""),
        "observed": observed,
        "expected": expected_text(config["kwargs"], checked.numbers),
        "last": last_value(column, checked.last),
        "examples": [dict(e) for e in _examples(result, half, checked, store)[:EXAMPLES]],
    }


def _examples(result: Result, half: str, checked: Checked, store: Store) -> list[dict[str, Any]]:
    """Rows that a person should look at."""
    column = column_of(result)
    if half == "rows":
        return row_examples(checked.rows, checked.key, failing_keys(result, checked.key))
    if checked.table == "images":
        return dropped_examples(store, checked.batch, column)
    if column.startswith("median_caption_cosine"):
        return worst_captions(store, checked.batch)
    return row_examples(checked.rows, checked.key, [str(row[checked.key]) for row in checked.rows])


def quarantine_rows(result: Result, checked: Checked) -> list[dict[str, Any]]:
    """Rows of table `quarantine`: those for which a row expectation does not hold, with the value of its column."""
    column = column_of(result)
    return [
        {
            "table": checked.table,
            "batch": checked.batch,
            "key": str(checked.rows[number][checked.key]),
            "expectation": result["expectation_config"]["type"],
            "column": column,
            "observed": str(checked.rows[number].get(column)),
        }
        for number in failing_numbers(result)
    ]


def last_value(column: str, last: Mapping[str, Any]) -> Any:
    """The last version's value of a figure; for a drop, the value from which the drop is measured."""
    if column.endswith("_drop"):
        return last.get(f"{column.removesuffix('_drop')}_new", last.get(column))
    return last.get(column)


def expected_text(kwargs: Mapping[str, Any], numbers: Mapping[str, float]) -> str:
    """What an expectation wants, in words: a range, a set, or that it holds for every row."""
    expected: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name not in ("column", "batch_id"):
            is_number = isinstance(value, dict) and "$PARAMETER" in value
            expected[name] = numbers.get(value["$PARAMETER"]) if is_number else value
    low, high = expected.get("min_value"), expected.get("max_value")
    bounds = [f"at least {low:g}"] if low is not None else []
    bounds += [f"at most {high:g}"] if high is not None else []
    if bounds:
        return " and ".join(bounds)
    if "value_set" in expected:
        return "one of " + ", ".join(map(str, expected["value_set"]))
    return ", ".join(f"{name} {value}" for name, value in expected.items()) or "every row"
