"""Run a Great Expectations suite on a table's new rows and figures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError
from tasks.validate.data_docs import make_readable

if TYPE_CHECKING:
    import pandas as pd

HALVES = ("rows", "figures")
Result = Mapping[str, Any]  # one expectation's result as Great Expectations gives it, JSON


@dataclass(frozen=True)
class Suite:
    """A suite of expectations/<table>.json with its numbers.

    Attributes:
        halves: "rows" | "figures" -> {"name", "expectations": [{"type", "kwargs", "meta", "severity"}]}. A row rule of
            severity `warning` quarantines rows; what has severity `critical` (the default) stops the batch.
        numbers: `$PARAMETER` name -> number.
    """

    halves: Mapping[str, Mapping[str, Any]]
    numbers: Mapping[str, float]

    def expectations(self, half: str) -> list[dict[str, Any]]:
        """The expectations of one half, in the file's order."""
        return list(self.halves[half]["expectations"])

    def numbers_of(self, half: str, numbers: Mapping[str, float] | None = None) -> dict[str, float]:
        """The numbers that one half names; by default of `self.numbers`."""
        numbers = self.numbers if numbers is None else numbers
        values = [value for e in self.expectations(half) for value in e["kwargs"].values() if isinstance(value, dict)]
        return {value["$PARAMETER"]: numbers[value["$PARAMETER"]] for value in values}

    def frame(self, half: str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Rows as a frame with every column that the half names, also where there is no row."""
        import pandas as pd

        frame = pd.DataFrame(list(rows))
        for expectation in self.expectations(half):
            column = expectation["kwargs"].get("column")
            if column and column not in frame.columns:
                frame[column] = None if len(frame) == 0 else math.nan
        return frame.where(frame.notna(), None) if len(frame) else frame


def read_suite(path: Path, numbers: Mapping[str, float]) -> Suite:
    """Read a suite's two halves, `rows` and `figures`.

    Args:
        path: expectations/<table>.json.
        numbers: the numbers that its `$PARAMETER` entries may name.
    Raises:
        ConfigError: not a suite, or it names a number that is not there.
    """
    try:
        halves: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a suite ({error})") from error
    for half in HALVES:
        for expectation in halves.get(half, {}).get("expectations", []):
            for value in expectation["kwargs"].values():
                name = value.get("$PARAMETER") if isinstance(value, dict) else None
                if name is not None and name not in numbers:
                    raise ConfigError(
                        f"{path}: {expectation['type']} wants parameter '{name}'; known in validate.{path.stem}: "
                        f"{sorted(numbers)}"
                    )
    return Suite(halves, numbers)


class SuiteRun:
    """Runs a suite's halves with Great Expectations, one after the other, and writes their Data Docs."""

    def __init__(self, suite: Suite, key: str) -> None:
        """Start Great Expectations.

        Args:
            suite: the expectations and their numbers.
            key: the table's key column, which names failing rows; rows also have `row_number`.
        """
        os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        self.suite, self.key = suite, key
        self._context: Any = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
        self._source: Any = self._context.data_sources.add_pandas("run")

    def run_half(
        self, half: str, rows: Sequence[Mapping[str, Any]], numbers: Mapping[str, float] | None = None
    ) -> list[Result]:
        """The result of each expectation of a half, in the suite's order.

        Args:
            half: rows or figures.
            rows: what is checked.
            numbers: of the `$PARAMETER` entries; by default the suite's.
        """
        import great_expectations as gx
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

        name = str(self.suite.halves[half]["name"]).replace(" ", "_")
        expectations = gx.ExpectationSuite(name=name)
        expectations.add_expectation_configurations(
            [ExpectationConfiguration(**e) for e in self.suite.expectations(half)]
        )
        batch = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = self._context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batch, suite=self._context.suites.add(expectations))
        )
        result_format: dict[str, Any] = {"result_format": "COMPLETE"}
        if half == "rows":
            result_format["unexpected_index_column_names"] = [self.key, "row_number"]
        outcome = definition.run(
            batch_parameters={"dataframe": self.suite.frame(half, rows)},
            expectation_parameters=self.suite.numbers_of(half, numbers),
            result_format=result_format,
        )
        by_identity = {
            _identity(r.expectation_config.type, r.expectation_config.kwargs): r.to_json_dict() for r in outcome.results
        }
        return [by_identity[_identity(e["type"], e["kwargs"])] for e in self.suite.expectations(half)]

    def write_docs(self, docs: Path) -> None:
        """Write the Data Docs of the halves that were run.

        Args:
            docs: their folder.
        """
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
        }
        self._context.add_data_docs_site(site_name="docs", site_config=site)
        self._context.build_data_docs(site_names=["docs"])
        make_readable(docs)


def _identity(kind: str, kwargs: Mapping[str, Any]) -> str:
    """An expectation's name: its type and column (a suite has each type once per column)."""
    return f"{kind}({kwargs.get('column', '')})"
