"""What people wrote about an image: lines of the review queue, and answers to composed search.

Both are lines of JSON that name images by their ids, and lie outside of what is published: reviews.jsonl beside the
deployment's clone, and search_feedback.jsonl in the folder of each `python -m tasks serve` (its uploads beside it). A
line that names a purged image goes whole, with the image that somebody uploaded for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from pathlib import Path

from tasks.locks import exclusive, lock_wait_s
from tasks.reviews.answers import Reviews
from tasks.store.atomic import write_bytes


def count_texts(clone: Path, feedback: Sequence[Path], ids: Set[str]) -> int:
    """Lines that name one of the images."""
    named = sum(1 for path in feedback for line in _lines(path) if _names(line, ids))
    return Reviews(clone).count_naming(ids) + named


def remove_texts(clone: Path, feedback: Sequence[Path], ids: Set[str]) -> None:
    """Remove the lines that name one of the images.

    Raises:
        TransientError: an answer has been being written for a long time.
    """
    Reviews(clone).remove_naming(ids)
    for path in feedback:
        # the lock that `serve` takes for each answer: one that comes meanwhile is not lost
        with exclusive(path.with_suffix(".lock"), lock_wait_s(), f"{path} is being written to"):
            lines = _lines(path)
            gone = [line for line in lines if _names(line, ids)]
            for line in gone:
                _remove_upload(path, line)
            if gone:
                write_bytes(path, b"".join(line + b"\n" for line in lines if line not in gone))


def _remove_upload(path: Path, line: bytes) -> None:
    try:
        uploaded = str(json.loads(line).get("query_image") or "")
    except (ValueError, AttributeError):
        return
    for file in path.with_suffix("").glob("*.jpg"):
        if file.stem == uploaded:
            file.unlink()


def _lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line]


def _names(line: bytes, ids: Set[str]) -> bool:
    return any(image_id.encode() in line for image_id in ids)
