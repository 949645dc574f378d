"""Judge the judge: `python -m tasks judge_check` measures `judge.model` on `judge.labelled` with the set's prompt and threshold.

The same measurement stands in front of every judging part (tasks/labelled.py); here a person tries a judge, a prompt or a
threshold before any run. Below the floors it ends with exit code 65.
"""

from __future__ import annotations

from pathlib import Path

from tasks import labelled
from tasks.config import Params
from tasks.errors import ConfigError
from tasks.models.captioner import load_captioner
from tasks.records import StageReport
from tasks.request_cache import open_cache
from tasks.store import Store

PROMPTS = Path(__file__).parent / "prompts"


def run(params: Params, store: Store) -> StageReport:
    """Measure the judge; figures accuracy, true_yes, false_yes, auc.

    Raises:
        ConfigError: no labelled set is named.
        DataError: the judge stands below its floors.
    """
    config = params.judge
    if not config.labelled:
        raise ConfigError("judge.labelled: no labelled set; name a CSV or Parquet with the columns query, candidate, instruction, fits")
    judge = load_captioner(
        config.model,
        revision=config.revision,
        device=config.device,
        engine=config.engine,
        url=config.url,
        threads=params.open_run.threads,
        question_batch=config.batch_questions,
        in_flight=config.in_flight,
        timeout_s=config.timeout_s,
        seed=params.open_run.seed,
        cache=open_cache(store.root, served=config.engine == "openai"),
    )
    template = (PROMPTS / params.caption.prompts / "judge.txt").read_text(encoding="utf-8").rstrip("\n")
    found = labelled.measured(judge, template, config, Path(config.labelled), store)
    labelled.require(found, config, judge.name)
    figures = {"accuracy": found.accuracy, "true_yes": found.true_yes, "false_yes": found.false_yes, "auc": found.auc}
    return StageReport("judge_check", read=found.questions, figures=figures, notes=[f"'{judge.name}' ({judge.revision}) at threshold {config.threshold:g}"])
