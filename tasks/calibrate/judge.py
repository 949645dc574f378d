"""Judge calibrate: learn the judge's calibration and its thresholds from labelled questions.

    python -m tasks judge_calibrate --labelled FILE ... [--out FILE] [--true-share 0.98] [--also-right 0.0035] [--write]

Asks `judge.model` the questions of one file or more (default `judge.labelled`), once each.

Questions whose candidate is a pair's target give the calibration (tasks/judge/calibration.py) and `judge.threshold`:
the lowest at which `--true-share` of the accepted texts fit. For that, each half of the query images is judged by
curves that the other half gave, so that no answer is predicted from itself; the curves that are kept are those of all.

Questions whose candidate is a mined negative (column `role`) give `judge.negative_threshold`: the highest at which at
most `--also-right` of what stays fits. As in stage judge, a negative goes where one of its pair's texts reaches the
threshold, so the texts of one query image and candidate count together. Files without such questions leave it as it is.

--out writes the curves, --write puts the thresholds into params.yaml. The last line printed is the result as JSON.

Thresholds are worth what the questions are worth: take texts that the product's own writer wrote, on images like yours
(`python -m tasks label_draft`). The sample world's files are made by tasks/calibrate/sample_labels.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tasks.calibrate.params_file import set_values
from tasks.config import Params, is_resolved, parse_params, read_raw, resolve
from tasks.errors import ConfigError, DataError
from tasks.judge.calibration import Calibration, fit_calibration, least_threshold
from tasks.judge.labelled import labelled_questions, read_labelled
from tasks.judge.questions import load_judge, yes_probabilities
from tasks.models.llm.requests import Refusal
from tasks.prompts.kinds import kind_of
from tasks.prompts.prompt_set import read_prompt
from tasks.store.atomic import write_bytes

TRUE_SHARE, ALSO_RIGHT = 0.98, 0.0035
DOWN = 1e-4  # thresholds have four decimals


@dataclass(frozen=True)
class Answers:
    """The judge's answers to labelled questions of one role.

    Attributes:
        yes: P(yes) per question.
        fits: the known answers.
        kinds: of change, per question.
        groups: per question the query image, hashed to 0 or 1: which half it belongs to.
        shown: per question its query image and candidate; empty: each question shows others.
    """

    yes: list[float]
    fits: list[bool]
    kinds: list[str]
    groups: list[int]
    shown: list[tuple[str, str]] = field(default_factory=list)

    def of(self, group: int) -> Answers:
        """The answers of one half."""
        rows = [n for n, g in enumerate(self.groups) if g == group]
        yes, fits, kinds = ([values[n] for n in rows] for values in (self.yes, self.fits, self.kinds))
        return Answers(yes, fits, kinds, [group] * len(rows))  # type: ignore[arg-type]

    def probabilities(self, calibration: Calibration) -> list[float]:
        """Calibrated."""
        return [calibration.probability(p, kind) for p, kind in zip(self.yes, self.kinds, strict=True)]


@dataclass(frozen=True)
class JudgeCalibration:
    """What the questions taught.

    Attributes:
        calibration: curves by kind of change.
        threshold: for `judge.threshold`, on calibrated probability.
        negative_threshold: for `judge.negative_threshold`, on P(yes); None without questions about negatives.
        true_share, true_yes: of accepted texts those that fit, and of fitting texts those accepted, at `threshold`; on
            the halves that gave no curve.
        also_right, negatives_removed: of negatives that stay those that fit, and of all negatives those removed.
        questions: a count.
    """

    calibration: Calibration
    threshold: float
    negative_threshold: float | None
    true_share: float
    true_yes: float
    also_right: float | None
    negatives_removed: float | None
    questions: int


def ask(params: Params, paths: Sequence[Path], root: Path) -> dict[str, Answers]:
    """role -> the judge's answers to the questions of labelled files."""
    files = [(path, read_labelled(path)) for path in paths]
    rows = [row for _, of_file in files for row in of_file]
    questions = [question for path, of_file in files for question in labelled_questions(of_file, path.parent)]
    template = read_prompt(params.caption.prompts, "judge")
    replies = yes_probabilities(load_judge(params, root), questions, template)
    out: dict[str, Answers] = {}
    for row, yes in zip(rows, replies, strict=True):
        if isinstance(yes, Refusal):
            continue
        answers = out.setdefault(row["role"], Answers([], [], [], []))
        answers.yes.append(yes)
        answers.fits.append(row["fits"])
        answers.kinds.append(row["kind"] or kind_of(row["instruction"], "", (), params.caption.prompts))
        answers.groups.append(hashlib.sha256(row["query"].encode()).digest()[0] % 2)
        answers.shown.append((row["query"], row["candidate"]))
    return out


def learn(answers: Mapping[str, Answers], true_share: float, also_right: float) -> JudgeCalibration:
    """Calibration and thresholds from the judge's answers; see the module's docstring.

    Args:
        answers: role -> answers; `target` is needed.
        true_share: wanted among accepted texts, 0..1.
        also_right: largest share of fitting ones among the negatives that stay, 0..1.
    Raises:
        DataError: no question about targets, one half without, or no threshold gives `true_share`.
    """
    targets = answers.get("target", Answers([], [], [], []))
    halves = [targets.of(group) for group in (0, 1)]
    if not all(half.yes for half in halves):
        raise DataError(
            f"judge_calibrate: {len(targets.yes)} questions about targets, in {sum(bool(h.yes) for h in halves)} of "
            "two halves of the query images; label more (docs/labelled/README.md)"
        )
    unseen: list[float] = []
    fits: list[bool] = []
    for half, other in (halves, halves[::-1]):
        unseen += half.probabilities(fit_calibration(other.yes, other.fits, other.kinds))
        fits += half.fits
    threshold = least_threshold(unseen, fits, true_share)
    if threshold is None:
        raise DataError(
            f"judge_calibrate: no threshold at which {true_share:.1%} of the accepted texts fit; take another judge, "
            "or a lower --true-share"
        )
    threshold = np.floor(threshold / DOWN) * DOWN
    accepted = [fit for p, fit in zip(unseen, fits, strict=True) if p >= threshold]
    negative, stays, removed = learn_negatives(answers.get("negative"), also_right)
    return JudgeCalibration(
        calibration=fit_calibration(targets.yes, targets.fits, targets.kinds),
        threshold=round(float(threshold), 4),
        negative_threshold=negative,
        true_share=sum(accepted) / len(accepted),
        true_yes=sum(accepted) / max(1, sum(fits)),
        also_right=stays,
        negatives_removed=removed,
        questions=sum(len(a.yes) for a in answers.values()),
    )


def learn_negatives(answers: Answers | None, also_right: float) -> tuple[float | None, float | None, float | None]:
    """(threshold on P(yes), share that fits among those that stay, share that goes); None each without answers."""
    if answers is None or not answers.yes:
        return None, None, None
    highest: dict[Any, float] = {}
    shown = answers.shown or range(len(answers.yes))
    for key, p in zip(shown, answers.yes, strict=True):
        highest[key] = max(p, highest.get(key, 0.0))
    reached = np.array([highest[key] for key in shown])  # by any text about the same negative
    order = np.argsort(reached, kind="stable")
    yes, fits = reached[order], np.asarray(answers.fits, float)[order]
    shares = np.cumsum(fits) / np.arange(1, len(fits) + 1)
    is_last = np.append(yes[1:] > yes[:-1], True)  # a threshold keeps all questions about a negative, or none
    good = np.flatnonzero(is_last & (shares <= also_right))
    kept = int(good[-1]) + 1 if len(good) else 0
    if kept == len(yes):
        return 1.0, float(shares[-1]), 0.0
    limit = round(float(np.floor(yes[kept] / DOWN) * DOWN), 4)
    stays = fits[yes < limit]
    return limit, float(stays.mean()) if len(stays) else 0.0, 1 - len(stays) / len(yes)


def calibrate_judge(
    params: Params, paths: Sequence[Path], root: Path, true_share: float = TRUE_SHARE, also_right: float = ALSO_RIGHT
) -> JudgeCalibration:
    """Ask the judge and learn; `root` is the folder of the request cache."""
    return learn(ask(params, paths, root), true_share, also_right)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks judge_calibrate`."""
    parser.add_argument("--root", default=".", type=Path, help="folder of params.yaml (default: here)")
    parser.add_argument(
        "--labelled", type=Path, nargs="+", help="CSV or Parquet files of labelled questions (default: judge.labelled)"
    )
    parser.add_argument("--out", type=Path, help="write the curves here; name the file in judge.calibration")
    parser.add_argument("--true-share", type=float, default=TRUE_SHARE, help="of accepted texts, those that fit")
    parser.add_argument("--also-right", type=float, default=ALSO_RIGHT, help="of negatives that stay, those that fit")
    parser.add_argument("--write", action="store_true", help="put the thresholds into params.yaml")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Learn, print, write what was asked for; the values.

    Raises:
        ConfigError: no labelled file is named, or a share is not between 0 and 1.
        DataError: the questions cannot give what is wanted.
    """
    file = args.root / "params.yaml"
    raw = read_raw(file)
    params = parse_params(raw if is_resolved(raw) else resolve(raw, raw.get("profile", "demo")), where=str(file))
    paths = args.labelled or ([Path(params.judge.labelled)] if params.judge.labelled else None)
    if paths is None:
        raise ConfigError("--labelled: missing, and judge.labelled is empty; name a file (docs/labelled/README.md)")
    for name, value in (("--true-share", args.true_share), ("--also-right", args.also_right)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} {value:g}: expected a share between 0 and 1")
    learnt = calibrate_judge(params, paths, args.root, args.true_share, args.also_right)
    values = {k: v for k, v in asdict(learnt).items() if k != "calibration"}
    numbers = {"threshold": learnt.threshold, "negative_threshold": learnt.negative_threshold}
    if args.out:
        write_bytes(args.out, learnt.calibration.to_json().encode())
    if args.write:
        changes = {f"judge.{k}": v for k, v in numbers.items() if v is not None}
        write_bytes(file, set_values(file.read_text(encoding="utf-8"), changes).encode())
    print(describe(learnt, params.judge.model))
    print(json.dumps(values))
    return values


def describe(learnt: JudgeCalibration, judge: str) -> str:
    """The result in sentences."""
    lines = [
        f"judge '{judge}', {learnt.questions} questions: at threshold {learnt.threshold:g} (calibrated) "
        f"{learnt.true_share:.1%} of the accepted texts fit, {learnt.true_yes:.1%} of the fitting ones are accepted"
    ]
    if learnt.negative_threshold is not None:
        lines.append(
            f"negatives: at {learnt.negative_threshold:g} {learnt.negatives_removed:.1%} are removed, "
            f"{learnt.also_right:.2%} of those that stay fit"
        )
    return "\n".join(lines)
