"""Run a Great Expectations suite on a table and read its failures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError
from tasks.validate.data_docs import make_readable
from tasks.validate.rows import EXAMPLES

if TYPE_CHECKING:
    import pandas as pd


def read_suite(path: Path, given: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The suite's two halves, `rows` and `figures`.

    Raises:
        ConfigError: not a suite, or it uses a `$PARAMETER` that `given` lacks.
    """
    try:
        suite: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a suite ({error})") from error
    for half in ("rows", "figures"):
        for e in suite.get(half, {}).get("expectations", []):
            for value in e["kwargs"].values():
                name = value.get("$PARAMETER") if isinstance(value, dict) else None
                if name is not None and name not in given:
                    raise ConfigError(
                        f"{path}: {e['type']} wants parameter '{name}'; known in validate.{path.stem}: {sorted(given)}"
                    )
    return suite


def check(
    frames: Mapping[str, pd.DataFrame],
    suite: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, float],
    key: str,
    docs: Path | None,
) -> dict[str, list[dict[str, Any]]]:
    """Run both halves of a suite with Great Expectations; Data Docs go to `docs`.

    Returns:
        {"rows" | "figures": [GX's result of each expectation, in the suite's order]}.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    source = context.data_sources.add_pandas("run")
    results: dict[str, list[dict[str, Any]]] = {}
    for half, frame in frames.items():
        name = str(suite[half]["name"]).replace(" ", "_")
        expectations = gx.ExpectationSuite(name=name)
        expectations.add_expectation_configurations(
            [ExpectationConfiguration(**e) for e in suite[half]["expectations"]]
        )
        expectations = context.suites.add(expectations)
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batch, suite=expectations)
        )
        form: dict[str, Any] = {"result_format": "COMPLETE"}
        if half == "rows":
            form["unexpected_index_column_names"] = [key]
        used = {
            v["$PARAMETER"] for e in suite[half]["expectations"] for v in e["kwargs"].values() if isinstance(v, dict)
        }
        done = definition.run(
            batch_parameters={"dataframe": frame},
            expectation_parameters={k: given[k] for k in used},
            result_format=form,
        )
        by_kwargs = {
            _identity(r.expectation_config.type, r.expectation_config.kwargs): r.to_json_dict() for r in done.results
        }
        results[half] = [by_kwargs[_identity(e["type"], e["kwargs"])] for e in suite[half]["expectations"]]
    if docs is not None:
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
        }
        context.add_data_docs_site(site_name="docs", site_config=site)
        context.build_data_docs(site_names=["docs"])
        make_readable(docs)
    return results


def _identity(kind: str, kwargs: Mapping[str, Any]) -> str:
    """An expectation's name: its type and column (a suite asks each kind once per column)."""
    return f"{kind}({kwargs.get('column', '')})"


def failure_of(
    result: Mapping[str, Any],
    half: str,
    given: Mapping[str, float],
    last: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    rows: int,
) -> dict[str, Any]:
    """One failing expectation for people: observed, expected, the last version's value, example rows."""
    config, outcome = result["expectation_config"], result.get("result") or {}
    expected = {}
    for name, value in config["kwargs"].items():
        if name not in ("column", "batch_id"):
            expected[name] = (
                given.get(value["$PARAMETER"]) if isinstance(value, dict) and "$PARAMETER" in value else value
            )
    if half == "figures":
        observed: Any = (outcome.get("partial_unexpected_list") or [None])[0]
    elif outcome:
        observed = (
            f"{outcome.get('unexpected_count')} of {rows} rows, e.g. {outcome.get('partial_unexpected_list', [])[:3]}"
        )
    else:
        observed = str((result.get("exception_info") or {}).get("exception_message", "could not be evaluated"))[:300]
    return {
        "expectation": _readable(config["type"]),
        "type": config["type"],
        "table_half": half,
        "column": config["kwargs"].get("column"),
        "why": (config.get("meta") or {}).get("why", ""),
        "observed": observed,
        "expected": _range(expected),
        "last": last_value(str(config["kwargs"].get("column")), last),
        "examples": [dict(e) for e in examples[:EXAMPLES]],
    }


def last_value(column: str, last: Mapping[str, Any]) -> Any:
    """The last version's value of a figure; for a drop, the value that it is measured from."""
    return (
        last.get(f"{column.removesuffix('_drop')}_new", last.get(column))
        if column.endswith("_drop")
        else last.get(column)
    )


def _readable(kind: str) -> str:
    return kind.removeprefix("expect_column_values_to_").removeprefix("expect_column_").replace("_", " ")


def _range(expected: Mapping[str, Any]) -> str:
    low, high = expected.get("min_value"), expected.get("max_value")
    if low is not None or high is not None:
        return " and ".join(
            t
            for t in (f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else "")
            if t
        )
    if "value_set" in expected:
        return "one of " + ", ".join(map(str, expected["value_set"]))
    return ", ".join(f"{k} {v}" for k, v in expected.items()) or "every row"


def failing_keys(result: Mapping[str, Any], key: str) -> list[str]:
    """Ids of the rows that an expectation complains about."""
    found = (result.get("result") or {}).get("unexpected_index_list") or []
    return [str(e[key]) for e in found if isinstance(e, dict) and key in e]


def frame_of(rows: Sequence[Mapping[str, Any]], suite: Mapping[str, Any]) -> pd.DataFrame:
    """Rows as a frame that has every column that the suite names, also when there is no row."""
    import pandas as pd

    frame = pd.DataFrame(list(rows))
    for e in suite["expectations"]:
        column = e["kwargs"].get("column")
        if column and column not in frame.columns:
            frame[column] = None if len(frame) == 0 else math.nan
    return frame.where(frame.notna(), None) if len(frame) else frame
