"""The answers that people gave to triplets: lines of JSON beside the deployment's clone, only ever added.

Of one person's answers to one text of a row the last one counts. Names of people stay in this file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.errors import DataError
from tasks.locks import exclusive

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
        with exclusive(self.path.with_suffix(".lock"), LOCK_S, problem), self.path.open("a", encoding="utf-8") as file:
            file.write(line)

    def read(self) -> list[Review]:
        """All answers that count: of one person and row the last one, in the order of writing.

        Raises:
            DataError: a line that is no review.
        """
        if not self.path.exists():
            return []
        last: dict[tuple[str, str, str], Review] = {}
        for number, line in enumerate(self.path.read_text(encoding="utf-8").split("\n"), 1):
            if not line:
                continue
            try:
                review = Review(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(f"{self.path}, line {number}: no review ({error}); mend or remove the line") from error
            key = (review.name, review.row_id, review.instruction)
            last.pop(key, None)
            last[key] = review
        return list(last.values())
