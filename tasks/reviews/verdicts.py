"""What people decided about triplets, from their answers: the verdicts that the next version follows.

An answer is about one text of one pair of images; of each person the last one counts, `unsure` counts as none. More
than half of the people who answered decide, so that a tie changes nothing:

- right or wrong;
- a text, where they wrote the same one in its place;
- an image, where they named it as fitting better than the target.

`open_run` writes the verdicts into the run's worktree, .run/verdicts.jsonl, which is never versioned: all stages of a
run follow the same ones, whoever answers meanwhile. They hold no names. Stage judge applies them
(tasks/judge/reviewed.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from tasks.errors import DataError, TransientError
from tasks.locks import exclusive
from tasks.reviews.answers import LOCK_S, Review, Reviews
from tasks.store.atomic import write_bytes

RUN_FILE = ".run/verdicts.jsonl"  # in the worktree


@dataclass(frozen=True)
class Verdict:
    """What people decided about one text of a pair of images.

    Attributes:
        query, target: image ids.
        instruction: the text.
        right, wrong: people who said so, counts.
        text: as it should read; empty where most left it.
        fits: image ids that fit better than the target, sorted.
        row_ids: of the triplets, or the pairs of rejected rows, that people were shown, sorted.
    """

    query: str
    target: str
    instruction: str
    right: int
    wrong: int
    text: str = ""
    fits: tuple[str, ...] = ()
    row_ids: tuple[str, ...] = ()

    @property
    def is_right(self) -> bool:
        """Whether more people said right than wrong."""
        return self.right > self.wrong

    @property
    def is_wrong(self) -> bool:
        """Whether more people said wrong than right."""
        return self.wrong > self.right


def decide(reviews: Iterable[Review]) -> list[Verdict]:
    """The verdicts that say something, by images and text.

    Args:
        reviews: in the order of writing; the order of different people's answers does not matter.
    """
    last: dict[tuple[str, str, str], dict[str, Review]] = {}
    for review in reviews:
        last.setdefault((review.query, review.target, review.instruction), {})[review.name] = review
    verdicts = []
    for key, of_people in sorted(last.items()):
        given = [review for review in of_people.values() if review.answer != "unsure"]
        answers = Counter(review.answer for review in given)
        texts = _by_most([" ".join(review.text.split()) for review in given])
        fits = _by_most([review.better if review.better != review.target else "" for review in given])
        rows = tuple(sorted({review.row_id for review in given}))
        verdict = Verdict(*key, answers["right"], answers["wrong"], "".join(texts), tuple(fits), rows)
        if verdict.right != verdict.wrong or verdict.text or verdict.fits:
            verdicts.append(verdict)
    return verdicts


def _by_most(values: Sequence[str]) -> list[str]:
    """The value that more than half of all are; none where that is the empty one."""
    return [value for value, count in Counter(values).items() if value and 2 * count > len(values)]


class Decided(NamedTuple):
    """What people decided, and a sentence for each line of theirs that is no review and was left out."""

    verdicts: Sequence[Verdict] = ()
    faults: Sequence[str] = ()


def deployment_verdicts(clone: Path) -> Decided:
    """The verdicts of a deployment's reviews as they are now.

    Args:
        clone: of the deployment.
    Raises:
        TransientError: an answer has been being written for a long time.
    """
    reviews = Reviews(clone)
    if not reviews.path.exists():
        return Decided()
    with exclusive(reviews.path.with_suffix(".lock"), LOCK_S, f"{reviews.path} is being written to"):
        answers = reviews.read_answers()
    return Decided(decide(answers.reviews), answers.faults)


def run_verdicts(clone: Path, *, is_takedown: bool) -> Decided:
    """The verdicts that a run is to follow. Nothing that people wrote stops a takedown: its run goes on without.

    Args:
        clone: of the deployment.
        is_takedown: whether the run takes images down.
    Raises:
        TransientError: as of `deployment_verdicts`, but not of a takedown.
    """
    try:
        return deployment_verdicts(clone)
    except (TransientError, OSError) as error:
        if not is_takedown:
            raise
        return Decided(faults=[f"verdicts of people are left to the next run: {error}"])


def write_verdicts(root: Path, verdicts: Sequence[Verdict]) -> None:
    """Write a run's verdicts into its worktree; no file where there is none."""
    if verdicts:
        lines = [json.dumps(asdict(verdict), ensure_ascii=False, sort_keys=True) + "\n" for verdict in verdicts]
        write_bytes(root / RUN_FILE, "".join(lines).encode())


def read_verdicts(root: Path) -> list[Verdict]:
    """The verdicts that a run follows; none where it was opened without any.

    Raises:
        DataError: a damaged file.
    """
    path = root / RUN_FILE
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Verdict(**{**row, "fits": tuple(row["fits"]), "row_ids": tuple(row["row_ids"])}) for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: no verdicts ({error}); close the run and open it again") from error
