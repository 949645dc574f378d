"""Judge the judge: `python -m tasks judge_check` measures `judge.model` on `judge.labelled` with the set's prompt and
threshold.

The same measurement stands in front of every judging part (tasks/judge/labelled.py); here a person tries a judge, a
prompt or a threshold before any run. Below the floors it ends with exit code 65.
"""

from __future__ import annotations

from pathlib import Path

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.judge import labelled
from tasks.judge.questions import load_judge
from tasks.records import StageReport
from tasks.store import Store

PROMPTS = Path(__file__).parents[1] / "prompts"


def run(params: Params, store: Store) -> StageReport:
    """Measure the judge; figures accuracy, true_yes, false_yes, auc.

    Raises:
        ConfigError: no labelled set is named.
        DataError: the judge stands below its floors.
    """
    config = params.judge
    if not config.labelled:
        raise ConfigError(
            "judge.labelled: no labelled set; name a CSV or Parquet with the columns query, candidate, instruction, fits"
        )
    judge = load_judge(params, store.root)
    template = (PROMPTS / params.caption.prompts / "judge.txt").read_text(encoding="utf-8").rstrip("\n")
    found = labelled.measured(judge, template, config, Path(config.labelled), store)
    labelled.require(found, config, judge.name)
    figures = {"accuracy": found.accuracy, "true_yes": found.true_yes, "false_yes": found.false_yes, "auc": found.auc}
    return StageReport(
        "judge_check",
        read=found.questions,
        figures=figures,
        notes=[f"'{judge.name}' ({judge.revision}) at threshold {config.threshold:g}"],
    )
