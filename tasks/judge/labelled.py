"""Quality of the judge, measured on questions with known answers.

A labelled file is CSV or Parquet with the columns query and candidate (images, relative to the file), instruction, and
fits (yes or no): is the candidate what the instruction makes of the query? In Parquet an image may also be inside the
row, as `datasets` stores images ({bytes, path}). Two columns may be there too, for `judge_calibrate`: role (target or
negative: what the candidate is to the pair) and kind (of change). `judge.labelled` names the file. The sample world's
is tasks/sample/labelled/labels.csv. For real models tasks/sample/plain/labels.csv separates a judge that sees
from one that does not; how good a judge is on a team's own images only the team's own rows show
(docs/labelled/README.md). The choice of judge matters more than any other here: in UniME-V2 (arXiv:2510.13515) one
judge was worth +3.5 points and another cost 1.6.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.config import JudgeConfig
from tasks.errors import ConfigError, DataError
from tasks.judge.questions import Calibrator, Question, yes_probabilities
from tasks.models.llm.base import Captioner
from tasks.models.llm.requests import Refusal
from tasks.store import Store

COLUMNS = ("query", "candidate", "instruction", "fits")
ANSWERS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
ROLES = ("target", "negative")
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")
INSIDE = "data:;base64,"  # begins the name of an image that is inside its row


@dataclass(frozen=True)
class JudgeMetrics:
    """How well a judge answers labelled questions.

    Attributes:
        questions: a count.
        accuracy: share answered right at the threshold.
        true_yes: share of the fitting candidates that it accepts.
        false_yes: share of the other candidates that it accepts.
        auc: probability that a fitting candidate gets a higher P(yes) than another one (ties count half).
    """

    questions: int
    accuracy: float
    true_yes: float
    false_yes: float
    auc: float

    def sentence(self) -> str:
        """For the report."""
        return (
            f"judge: right on {self.accuracy:.1%} of {self.questions} labelled questions, "
            f"false yes {self.false_yes:.1%}, AUC {self.auc:.3f}"
        )


def judge_metrics(yes: Sequence[float], fits: Sequence[bool], threshold: float) -> JudgeMetrics:
    """Metrics of P(yes) against the known answers.

    Args:
        yes: P(yes) per question, 0..1.
        fits: the known answer per question.
        threshold: P(yes) from which a candidate is accepted, 0..1.
    Raises:
        DataError: all answers are the same, so that nothing can be measured.
    """
    fitting = [p for p, is_fit in zip(yes, fits, strict=True) if is_fit]
    others = [p for p, is_fit in zip(yes, fits, strict=True) if not is_fit]
    if not fitting or not others:
        raise DataError(
            f"judge.labelled: {len(fitting)} rows fit and {len(others)} do not; both kinds are needed to measure a "
            "judge: add rows of the other kind"
        )
    true_yes, false_yes = sum(p >= threshold for p in fitting), sum(p >= threshold for p in others)
    ordered = sum((p > q) + 0.5 * (p == q) for p in fitting for q in others)
    return JudgeMetrics(
        questions=len(yes),
        accuracy=(true_yes + len(others) - false_yes) / len(yes),
        true_yes=true_yes / len(fitting),
        false_yes=false_yes / len(others),
        auc=ordered / (len(fitting) * len(others)),
    )


def read_labelled(path: Path) -> list[dict[str, Any]]:
    """The rows of a labelled file, `fits` as a bool, `role` target and `kind` empty where the file does not say.

    Raises:
        ConfigError: no such file, a column is missing, an answer is neither yes nor no, or a role is unknown.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = [_with_inner_images(row) for row in pq.read_table(path).to_pylist()]
        else:
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:  # ValueError: no UTF-8, no Parquet
        raise ConfigError(
            f"judge.labelled: {path} cannot be read ({error}); expected CSV or Parquet with the columns {list(COLUMNS)}"
        ) from None
    labelled = []
    for number, row in enumerate(rows, 1):
        if any(row.get(c) in (None, "") for c in COLUMNS):
            raise ConfigError(f"judge.labelled: {path}, row {number}: expected a value in each of {list(COLUMNS)}")
        answer = ANSWERS.get(str(row["fits"]).strip().lower())
        if answer is None:
            raise ConfigError(f"judge.labelled: {path}, row {number}: 'fits' is {row['fits']!r}; expected yes or no")
        role = row.get("role") or ROLES[0]
        if role not in ROLES:
            raise ConfigError(f"judge.labelled: {path}, row {number}: 'role' is {role!r}; expected one of {ROLES}")
        labelled.append({**{c: row[c] for c in COLUMNS}, "fits": answer, "role": role, "kind": row.get("kind") or ""})
    return labelled


def _with_inner_images(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with each image that is inside it as a name that holds its bytes."""
    names = {}
    for column in ("query", "candidate"):
        value = row.get(column)
        if isinstance(value, Mapping):
            names[column] = (
                INSIDE + base64.b64encode(value["bytes"]).decode() if value.get("bytes") else value.get("path")
            )
    return {**row, **names}


def labelled_questions(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Question]:
    """The rows as questions; each image is opened once.

    Raises:
        ConfigError: an image cannot be read.
    """
    from PIL import Image

    images = {}
    for name in dict.fromkeys(row[c] for row in rows for c in ("query", "candidate")):
        try:
            file = io.BytesIO(base64.b64decode(name.removeprefix(INSIDE))) if name.startswith(INSIDE) else folder / name
            images[name] = Image.open(file, formats=IMAGE_FORMATS).convert("RGB")
        except OSError as error:
            raise ConfigError(f"judge.labelled: image {str(folder / name)[:200]} cannot be read ({error})") from None
    return [Question(images[row["query"]], images[row["candidate"]], row["instruction"]) for row in rows]


def measure_judge(
    model: Captioner, template: str, config: JudgeConfig, store: Store, calibrator: Calibrator | None = None
) -> JudgeMetrics:
    """The judge's metrics on the labelled file that the parameters name.

    Measured once per worktree, judge, prompt, threshold, calibration and file; the result is kept as
    .run/judge/<key>.json.

    Args:
        model: the judge.
        template: the prompt, with {instruction}.
        config: with `labelled` and the threshold.
        store: of the worktree.
        calibrator: of P(yes), as the threshold is meant; None where it is meant for P(yes) itself.
    """
    path = Path(str(config.labelled))
    rows = read_labelled(path)
    curves = calibrator.calibration.to_json() if calibrator and calibrator.calibration else None
    inputs = [model.name, model.revision, model.engine, template, config.threshold, rows, str(path), curves]
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    result = store.folder(".run", "judge", f"{key}.json")
    if result.exists():
        return JudgeMetrics(**json.loads(result.read_text()))
    answers = zip(yes_probabilities(model, labelled_questions(rows, path.parent), template), rows, strict=True)
    scored = [(yes, row) for yes, row in answers if not isinstance(yes, Refusal)]
    known = [
        (calibrator.of_text(yes, r["instruction"], r["kind"]) if calibrator else yes, r["fits"]) for yes, r in scored
    ]
    metrics = judge_metrics([yes for yes, _ in known], [is_fit for _, is_fit in known], config.threshold)
    store.write_bytes(result, json.dumps(asdict(metrics)).encode())
    return metrics


def require_quality(metrics: JudgeMetrics, config: JudgeConfig, judge: str) -> None:
    """Stop where a judge is not good enough.

    A judge that does not see its images has an AUC of about 0.5, whatever the share of "no" among the rows.

    Raises:
        DataError: accuracy or AUC too low, or too many wrong candidates accepted.
    """
    if (
        metrics.accuracy < config.accuracy_min
        or metrics.false_yes > config.false_yes_max
        or metrics.auc < config.auc_min
    ):
        raise DataError(
            f"judge '{judge}': right on {metrics.accuracy:.1%} of {metrics.questions} labelled questions "
            f"(judge.accuracy_min {config.accuracy_min:.0%}), accepts {metrics.false_yes:.1%} of the wrong candidates "
            f"(judge.false_yes_max {config.false_yes_max:.0%}), AUC {metrics.auc:.3f} "
            f"(judge.auc_min {config.auc_min:g}); it would spoil what it judges: take another judge, prompt or "
            "threshold (`python -m tasks judge_check` tries one)"
        )
