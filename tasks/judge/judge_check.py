"""Measure the judge: `python -m tasks judge_check` runs `judge.model` on the questions of `judge.labelled`.

Prompt and threshold are those of the parameters. Every judging part makes the same measurement first
(tasks/judge/labelled.py); this command tries a judge, a prompt or a threshold before any run. It ends with exit code 65
where the judge is not good enough (`judge.accuracy_min`, `judge.false_yes_max`, `judge.auc_min`).
"""

from __future__ import annotations

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.judge.labelled import measure_judge, require_quality
from tasks.judge.questions import Calibrator, load_judge
from tasks.prompts.prompt_set import read_prompt
from tasks.records import StageReport
from tasks.store import Store


def run(params: Params, store: Store) -> StageReport:
    """Measure the judge; figures accuracy, true_yes, false_yes, auc (shares, tasks/judge/labelled.py).

    Raises:
        ConfigError: no labelled file is named.
        DataError: the judge is not good enough.
    """
    config = params.judge
    if not config.labelled:
        raise ConfigError(
            "judge.labelled: empty; name a CSV or Parquet file with the columns query, candidate, instruction, fits"
        )
    judge = load_judge(params, store.root)
    template = read_prompt(params.caption.prompts, "judge")
    metrics = measure_judge(judge, template, config, store, Calibrator.load(params))
    require_quality(metrics, config, judge.name)
    report = StageReport("judge_check", read=metrics.questions)
    report.figures = {
        "accuracy": metrics.accuracy,
        "true_yes": metrics.true_yes,
        "false_yes": metrics.false_yes,
        "auc": metrics.auc,
    }
    report.notes = [f"'{judge.name}' ({judge.revision}) at threshold {config.threshold:g}"]
    return report
