"""Judge the judge: questions with known answers, and what a judge makes of them.

A labelled file is CSV or Parquet with the columns query, candidate (images, relative to the file), instruction, and
fits (yes or no): is the candidate what the instruction makes of the query? The sample world's is
tasks/sample/labelled/labels.csv; for real models there is tasks/sample/plain/labels.csv, which tells a judge that sees
from one that does not. How good a judge is on a team's own images only the team's own rows tell:
docs/labelled/README.md says how to fill them, `judge.labelled` names them. The choice of judge matters more than any
other here: in UniME-V2 (arXiv:2510.13515) one judge was worth +3.5 points and another cost 1.6.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.config import JudgeConfig
from tasks.errors import ConfigError, DataError
from tasks.judge.questions import Question, yes_probabilities
from tasks.models.llm.base import Captioner
from tasks.store import Store

COLUMNS = ("query", "candidate", "instruction", "fits")
ANSWERS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True)
class Standing:
    """How a judge did.

    Attributes:
        questions: asked, a count.
        accuracy: share answered right at the threshold.
        true_yes: share of the fitting candidates that it takes.
        false_yes: share of the others that it takes.
        auc: chance that a fitting candidate gets a higher P(yes) than another one (ties count half).
    """

    questions: int
    accuracy: float
    true_yes: float
    false_yes: float
    auc: float


def standing(yes: Sequence[float], fits: Sequence[bool], threshold: float) -> Standing:
    """How P(yes) stands to the known answers.

    Raises:
        DataError: all answers are the same; nothing can be told from them.
    """
    right = [p for p, f in zip(yes, fits, strict=True) if f]
    wrong = [p for p, f in zip(yes, fits, strict=True) if not f]
    if not right or not wrong:
        raise DataError(
            f"judge.labelled: {len(right)} rows fit and {len(wrong)} do not; both kinds are needed to judge a judge"
        )
    taken, fooled = sum(p >= threshold for p in right), sum(p >= threshold for p in wrong)
    above = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    return Standing(
        questions=len(yes),
        accuracy=(taken + len(wrong) - fooled) / len(yes),
        true_yes=taken / len(right),
        false_yes=fooled / len(wrong),
        auc=above / (len(right) * len(wrong)),
    )


def read_labelled(path: Path) -> list[dict[str, Any]]:
    """The rows of a labelled file, `fits` as a bool.

    Raises:
        ConfigError: no such file, a column is missing, or an answer is neither yes nor no.
    """
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
        else:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(
            f"judge.labelled: {path} cannot be read ({error}); expected CSV or Parquet with the columns {list(COLUMNS)}"
        ) from None
    out = []
    for number, row in enumerate(rows, 1):
        if any(row.get(c) in (None, "") for c in COLUMNS):
            raise ConfigError(f"judge.labelled: {path}, row {number}: expected a value in each of {list(COLUMNS)}")
        answer = ANSWERS.get(str(row["fits"]).strip().lower())
        if answer is None:
            raise ConfigError(f"judge.labelled: {path}, row {number}: 'fits' is {row['fits']!r}; expected yes or no")
        out.append({**{c: row[c] for c in COLUMNS}, "fits": answer})
    return out


def questions_of(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Question]:
    """The rows as questions; each image is opened once.

    Raises:
        ConfigError: an image cannot be read.
    """
    from PIL import Image

    images = {}
    for name in dict.fromkeys(row[c] for row in rows for c in ("query", "candidate")):
        try:
            images[name] = Image.open(folder / name, formats=("JPEG", "PNG", "WEBP")).convert("RGB")
        except OSError as error:
            raise ConfigError(f"judge.labelled: image {folder / name} cannot be read ({error})") from None
    return [Question(images[row["query"]], images[row["candidate"]], row["instruction"]) for row in rows]


def measured(model: Captioner, template: str, config: JudgeConfig, path: Path, store: Store) -> Standing:
    """The judge's standing on a labelled file, measured once per worktree, judge, prompt and file
    (.run/judge/<key>.json).
    """
    rows = read_labelled(path)
    facts = [model.name, model.revision, model.engine, template, config.threshold, rows, str(path)]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    place = store.folder(".run", "judge", f"{key}.json")
    if place.exists():
        return Standing(**json.loads(place.read_text()))
    found = standing(
        yes_probabilities(model, questions_of(rows, path.parent), template),
        [bool(row["fits"]) for row in rows],
        config.threshold,
    )
    store.write_bytes(place, json.dumps(asdict(found)).encode())
    return found


def require(found: Standing, config: JudgeConfig, judge: str) -> None:
    """Stop where a judge stands below its floors.

    Raises:
        DataError: accuracy or AUC too low, or too many wrong candidates taken. A judge that sees nothing is no better
            than chance in its
            AUC, whatever the share of "no" among the rows.
    """
    if found.accuracy < config.accuracy_min or found.false_yes > config.false_yes_max or found.auc < config.auc_min:
        raise DataError(
            f"judge '{judge}': right on {found.accuracy:.1%} of {found.questions} labelled questions (judge.accuracy_min {config.accuracy_min:.0%}), takes "
            f"{found.false_yes:.1%} of the wrong candidates (judge.false_yes_max {config.false_yes_max:.0%}), AUC {found.auc:.3f} "
            f"(judge.auc_min {config.auc_min:g}); it would spoil what it judges: take another judge, prompt or threshold "
            "(`python -m tasks judge_check` tries one)"
        )
