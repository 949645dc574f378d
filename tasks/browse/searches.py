"""Composed search's items in the review queue of a version: what is shown of each, and what people said of it.

A verdict on such an item is kept as any other: it is a label for the judge's check (`python -m tasks reviews --labels`)
where both images are the version's, and it decides about a triplet, or a rejected pair, of the same two images and the
same text. By itself it makes no triplet: a pair that was never mined has no encoder, no similarity and no hard
negatives, which the tables and the gates expect of each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.reviews.answers import ANSWERS, Review
from tasks.reviews.searches import REASON, UPLOAD, SearchItem, feedback_files, read_searches, uploaded_image

if TYPE_CHECKING:
    from tasks.browse.explorer import Explorer


def items_of(explorer: Explorer, clone: Path) -> list[dict[str, Any]]:
    """The items whose images the version has, as the queue's template shows a row, in the queue's order.

    Args:
        explorer: of the version.
        clone: of the deployment.
    """
    files = feedback_files(clone)
    items = read_searches(files)
    sources = explorer.sources({image for item in items for image in (item.query, item.target)})
    kept = {path.stem for file in files for path in file.with_suffix("").glob(f"{UPLOAD}*.jpg")}
    sources |= dict.fromkeys(kept, "uploaded by a person")
    return [shown_item(item, sources) for item in items if {item.query, item.target} <= sources.keys()]


def shown_item(item: SearchItem, sources: dict[str, str]) -> dict[str, Any]:
    """An item as `shown_row` of tasks/browse/explorer.py gives a triplet."""
    return {
        "id": item.row_id,
        "query": item.query,
        "target": item.target,
        "query_source": sources[item.query],
        "target_source": sources[item.target],
        "lowest": {"text": item.text, "score": ""},
        "negatives": [],
        "is_accepted": False,
        "reason": REASON,
        "said": [(name or "somebody", at) for name, at in item.said],
        "version": item.version,
    }


def waiting(items: Sequence[dict[str, Any]], answered: Iterable[str], reason: str) -> list[dict[str, Any]]:
    """The items that a person has not answered; none where the queue shows another reason."""
    done = set(answered)
    return [item for item in items if reason in ("", REASON) and item["id"] not in done]


def verdicts(
    items: Sequence[dict[str, Any]], reviews: Sequence[Review], answered: Iterable[str]
) -> list[dict[str, Any]]:
    """What all people said of the items that this person has answered: before, it would sway them.

    Returns:
        {"text", "query", "target", "answers"} each, the last answered first; answers are [(answer, count)].
    """
    places = {row_id: n for n, row_id in enumerate(answered)}
    found = []
    for item in sorted((i for i in items if i["id"] in places), key=lambda i: -places[i["id"]]):
        given = [review.answer for review in reviews if review.row_id == item["id"]]
        answers = [(answer, given.count(answer)) for answer in ANSWERS if answer in given]
        found.append({**item, "text": item["lowest"]["text"], "answers": answers})
    return found


def image(explorer: Explorer, clone: Path, key: str) -> bytes:
    """The stored JPEG of an image of the version, or of one that a person uploaded for a search.

    Raises:
        DataError: no such image.
    """
    return uploaded_image(feedback_files(clone), key) if key.startswith(UPLOAD) else explorer.image(key)
