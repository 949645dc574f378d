"""What a task made has a page: a gate's expectations, a version, a model's scores.

The task's log ends with the page's address, and a button under Details opens it. Mapped tasks are parts of a stage: the
task that merges them has the page (evaluate, not evaluate_part).
"""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink

from megapairs.wiring import dataset_of, run_folder
from tasks.names import slug

WITH_PAGES = ("validate", "version", "evaluate", "promote")  # stages that have a page


def page_path(stage: str, item: str | None, batch: str, run: str) -> str:
    """Path of a stage's page below the plugin's; empty for a stage without one.

    Args:
        stage, item: as in `python -m tasks <stage> <item>`.
        batch: name of the run's version.
        run: the folder of its worktree.
    """
    if stage == "validate" and batch:
        return f"gates/{batch}/{quote(str(item))}?run={quote(run)}"
    if stage == "version" and batch:
        return f"versions/{batch}/"
    return "#models" if stage in ("evaluate", "promote") else ""


def page_link(stage: str, item: str | None, dag_id: str, run_id: str) -> str:
    """Address of a stage's page of a run; empty for a stage without one, or where the run is not open.

    Args:
        stage, item: as in `python -m tasks <stage> <item>`.
        dag_id, run_id: of the run.
    """
    try:
        opened = json.loads((run_folder(run_id, dag_id) / ".run" / "opened.json").read_text())
    except (OSError, ValueError):
        opened = {}
    path = page_path(stage, item, str(opened.get("batch", "")), slug(run_id))
    dataset = dataset_of(dag_id)
    base = os.environ.get("MEGAPAIRS_UI", "").rstrip("/") + "/megapairs/" + (f"d/{dataset}/" if dataset else "")
    return base + path if path else ""


class PageLink(BaseOperatorLink):
    """Link of a Stage to its page in the plugin (plugins/reports_plugin.py); empty for stages without a page."""

    name = "MegaPairs page"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The page's address; Airflow asks for it when the task has ended.

        Args:
            operator: a Stage.
            ti_key: of the task instance: dag_id, run_id.
        """
        stage, item = getattr(operator, "stage", ""), getattr(operator, "item", None)
        return page_link(stage, item, ti_key.dag_id, str(ti_key.run_id))
