"""OpenLineage: which tables a stage read and wrote, where Airflow's openlineage provider is installed.

The provider asks an operator for `get_openlineage_facets_on_complete` and sends what it gets where Airflow's
[openlineage] section says. What a stage reads and writes stands in dvc.yaml, which one test holds to the DAGs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NAMESPACE = "megapairs"


def tables_of(dvc_yaml: Path, stage: str, item: str | None) -> tuple[list[str], list[str]]:
    """The folders of data and models that a stage reads and writes, as dvc.yaml says; none for one that is not in it.

    Args:
        dvc_yaml: the file.
        stage: its name on the command line.
        item: its encoder or table.
    """
    try:
        stages = yaml.safe_load(dvc_yaml.read_text(encoding="utf-8"))["stages"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return [], []
    entry = stages.get(stage) or stages.get(f"{stage}-{item}") or {}
    entry = entry.get("do", entry)
    read, written = (
        [_path(value).replace("${key}", item or "") for value in entry.get(key) or []] for key in ("deps", "outs")
    )
    is_table = ("data/", "models/")
    return [p for p in read if p.startswith(is_table)], [p for p in written if p.startswith(is_table)]


def _path(entry: Any) -> str:
    """The path of an output, which may be a mapping of its path to options."""
    return str(next(iter(entry))) if isinstance(entry, Mapping) else str(entry)


def lineage_of(stage: str, item: str | None, worktree: Path, report: Mapping[str, Any] | None) -> Any:
    """OpenLineage's view of a stage that ended; None where the provider is not installed.

    The first table that it wrote has the count of its rows, the others (dropped rows) have none.
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.event_v2 import InputDataset, OutputDataset
        from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics
    except ImportError:
        return None
    read, written = tables_of(worktree / "dvc.yaml", stage, item)
    facets: list[dict[str, Any]] = [{} for _ in written]
    if report is not None and written:
        rows = statistics.OutputStatisticsOutputDatasetFacet(rowCount=int(report.get("written") or 0))
        facets[0]["outputStatistics"] = rows
    return OperatorLineage(
        inputs=[InputDataset(NAMESPACE, name) for name in read],
        outputs=[
            OutputDataset(NAMESPACE, name, outputFacets=facet) for name, facet in zip(written, facets, strict=True)
        ],
    )
