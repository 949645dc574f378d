"""The answers that people gave to triplets: lines of JSON beside the deployment's clone, only ever added.

Of one person's answers to one text of a row the last one counts. Names of people stay in this file.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from tasks.errors import DataError
from tasks.locks import exclusive
from tasks.store.atomic import write_bytes

log = logging.getLogger(__name__)
ANSWERS = ("right", "wrong", "unsure")
FILE = "reviews.jsonl"
LOCK_S = 10.0
TEXT_CHARS, NAME_CHARS = 1000, 100


@dataclass(frozen=True)
class Review:
    """One person's answer to one row.

    Attributes:
        at: time, UTC, ISO 8601.
        name: of the person, as Airflow knows them.
        version: that was shown.
        row_id: triplet id, or pair id of a rejected row.
        instruction: the text that was judged.
        query, target: image ids.
        answer: right, wrong or unsure.
        better: image id that fits better than the target; empty where none was named.
        text: the instruction as it should read; empty where it was left.
    """

    at: str
    name: str
    version: str
    row_id: str
    instruction: str
    query: str
    target: str
    answer: str
    better: str = ""
    text: str = ""


class Answers(NamedTuple):
    """What a file of reviews says.

    Attributes:
        reviews: that count: of one person and row the last one, in the order of writing.
        faults: a sentence for each line that is no review; such a line is left out.
    """

    reviews: list[Review]
    faults: list[str]


def parse_review(line: bytes) -> Review:
    """A line of the file.

    Raises:
        ValueError: it is no review.
    """
    row = json.loads(line)
    if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
        raise ValueError("expected an object of texts")
    try:
        review = Review(**row)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if review.answer not in ANSWERS:
        raise ValueError(f"answer {review.answer[:20]!r}; expected one of {list(ANSWERS)}")
    return review


class Reviews:
    """The file of a deployment's reviews.

    Args:
        clone: the deployment's clone; the file lies beside it.
    """

    def __init__(self, clone: Path) -> None:
        self.path = clone.resolve().parent / FILE

    def add(self, review: Review) -> None:
        """Append one answer.

        Raises:
            DataError: no such answer, or a text that is too long.
        """
        if review.answer not in ANSWERS:
            raise DataError(f"answer {review.answer[:20]!r}: expected one of {list(ANSWERS)}")
        if max(len(review.text), len(review.instruction)) > TEXT_CHARS or len(review.name) > NAME_CHARS:
            raise DataError(f"text: expected at most {TEXT_CHARS:,} characters")
        line = json.dumps(asdict(review), ensure_ascii=False, sort_keys=True) + "\n"
        problem = f"{self.path} is being written to"
        with exclusive(self.path.with_suffix(".lock"), LOCK_S, problem), self.path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # the last answer was cut off; this one is a line of its own
                    line = f"\n{line}"
            file.write(line.encode())

    def read(self) -> list[Review]:
        """The answers that count, as of `read_answers`; a warning for each line that is no review."""
        answers = self.read_answers()
        for fault in answers.faults:
            log.warning("%s", fault)
        return answers.reviews

    def read_answers(self) -> Answers:
        """The answers that count, and the lines that are none: one damaged line must not stop a week or a takedown."""
        last: dict[tuple[str, str, str], Review] = {}
        faults = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n") if self.path.exists() else (), 1):
            if not line.strip():
                continue
            try:
                review = parse_review(line)
            except ValueError as error:
                faults.append(f"{self.path}, line {number}: no review ({error}), left out; mend or remove the line")
                continue
            key = (review.name, review.row_id, review.instruction)
            last.pop(key, None)
            last[key] = review
        return Answers(list(last.values()), faults)

    def count_naming(self, words: Set[str]) -> int:
        """Lines that hold one of these ids, those that are no review included."""
        return sum(1 for line in self._lines() if _names(line, words))

    def remove_naming(self, words: Set[str]) -> None:
        """Remove the lines that hold one of these ids; the file stays as it is where none does.

        Raises:
            TransientError: an answer has been being written for a long time.
        """
        with exclusive(self.path.with_suffix(".lock"), LOCK_S, f"{self.path} is being written to"):
            lines = self._lines()
            kept = [line for line in lines if not _names(line, words)]
            if len(kept) < len(lines):
                write_bytes(self.path, b"".join(kept))

    def _lines(self) -> list[bytes]:
        content = self.path.read_bytes() if self.path.exists() else b""
        return [line + b"\n" for line in content.split(b"\n") if line]


def _names(line: bytes, words: Set[str]) -> bool:
    return any(word.encode() in line for word in words)
