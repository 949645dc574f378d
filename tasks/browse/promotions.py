"""What model runs decided: promoted or not, why, and the scores; lines of JSON beside the deployment's clone.

A promoted model is published with its evaluation. A candidate that was not promoted leaves nothing behind when its run
is closed, so the Airflow operator of `promote` keeps the decision here: one line a run, only ever added; of one run's
lines the last counts. The home page shows them (tasks/browse/overview.py).
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.locks import exclusive

log = logging.getLogger(__name__)
FILE = "promotions.jsonl"
LOCK_S = 10.0
MODELS = ("finetuned", "promoted", "base")  # in the order in which pages show them


@dataclass(frozen=True)
class Decision:
    """What one model run decided.

    Attributes:
        at: time, UTC, ISO 8601.
        run_id: of the Airflow run.
        data_version: the version that the candidate was trained on, YYYY.MM.DD[.n].
        is_promoted: whether the candidate became the promoted model.
        why: the stage's own sentence.
        metric: the main metric; empty where nothing was scored.
        scores: model -> [score of its composed query, low, high], 0..1; low and high of the 95% interval over the
            queries are None where it was not measured.
    """

    at: str
    run_id: str
    data_version: str
    is_promoted: bool
    why: str
    metric: str = ""
    scores: dict[str, list[float | None]] = field(default_factory=dict)


def decision_from(
    report: Mapping[str, Any], evaluation: Mapping[str, Any], *, run_id: str, data_version: str
) -> Decision:
    """A decision from what the run left.

    Args:
        report: StageReport of promote.
        evaluation: reports/evaluation.json of the run; empty where it is not there.
        run_id, data_version: as of `Decision`.
    """
    figures, notes = dict(report.get("figures") or {}), [str(note) for note in report.get("notes") or []]
    metric = next((name.removeprefix("finetuned_") for name in figures if name.startswith("finetuned_")), "")
    scores: dict[str, list[float | None]] = {}
    for model in MODELS:
        if (value := figures.get(f"{model}_{metric}")) is not None:
            composed = ((evaluation.get("intervals") or {}).get(model) or {}).get("composed") or {}
            low, high = composed.get(metric) or (None, None)
            scores[model] = [float(value), low, high]
    return Decision(
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        run_id=run_id,
        data_version=data_version,
        is_promoted=bool(figures.get("is_promoted")),
        why=next((note for note in reversed(notes) if "promoted" in note), notes[-1] if notes else ""),
        metric=metric,
        scores=scores,
    )


def keep(clone: Path, folder: Path, run_id: str, report: Mapping[str, Any]) -> None:
    """Add a run's decision to the deployment's file.

    Args:
        clone: the deployment's clone; the file lies beside it.
        folder: the run's worktree, still open.
        run_id: of the Airflow run.
        report: StageReport of promote.
    Raises:
        OSError, ValueError: the worktree's files cannot be read, or the deployment's file cannot be written.
        TransientError: another process has held the file for too long.
    """
    version = _read_json(folder / "version.json")
    decision = decision_from(
        report,
        _read_json(folder / "reports" / "evaluation.json"),
        run_id=run_id,
        data_version=str(version.get("version", "")),
    )
    path = clone.resolve().parent / FILE
    line = json.dumps(asdict(decision), ensure_ascii=False, sort_keys=True) + "\n"
    problem = f"{path} is being written to"
    with exclusive(path.with_suffix(".lock"), LOCK_S, problem), path.open("a", encoding="utf-8") as file:
        file.write(line)


def read(clone: Path) -> list[Decision]:
    """The decisions of a deployment, one a run, the newest first; a line that is none of them is left out."""
    path = clone.resolve().parent / FILE
    if not path.is_file():
        return []
    last: dict[str, Decision] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        if not line:
            continue
        try:
            decision = Decision(**json.loads(line))
            if any(len(values) != 3 for values in decision.scores.values()):
                raise ValueError("expected three numbers a model")
        except (ValueError, TypeError, AttributeError) as error:
            log.warning("%s, line %d: no decision (%s); left out", path, number, error)
            continue
        last.pop(decision.run_id, None)
        last[decision.run_id] = decision
    return list(reversed(last.values()))


def _read_json(path: Path) -> dict[str, Any]:
    """A file's mapping; empty where there is no such file."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
