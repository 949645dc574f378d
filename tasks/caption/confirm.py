"""Check a structured description difference by difference, and look for what it leaves out.

With `caption.check_differences` every difference is asked for on its own: each of its sides must be in its own image
and not in the other one, by the captioner's P(yes) to a question about one image. What is not confirmed leaves the
description, so that no text states it. Then both images are shown once more with the confirmed differences: where the
captioner sees anything else, the description is known to be partial, and only styles that state one change are written
(tasks/prompts/styles.py). The questions are check.txt and missing.txt of the prompt set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tasks.caption.checks import clean_reply
from tasks.caption.descriptions import Description, Difference
from tasks.caption.draft import DESCRIPTION, Draft
from tasks.models.llm.base import Captioner
from tasks.models.llm.requests import Refusal, Request
from tasks.prompts.prompt_set import PromptSet, fill_template

YES = 0.5  # P(yes) from which an answer is yes


class _Side(NamedTuple):
    """One side of a difference, to be asked for in both images; `own` is the image that must show it (0 or 1)."""

    draft: int
    difference: int
    own: int
    text: str


def confirm_descriptions(
    drafts: Sequence[Draft], images: Sequence[tuple[Any, Any]], model: Captioner, prompts: PromptSet
) -> None:
    """Take unconfirmed differences out of the drafts' descriptions; mark those that leave something out.

    A draft of whose differences none is confirmed loses its description (unconfirmed).

    Args:
        drafts: those without a structured description are passed over.
        images: (source, target) of each draft.
        model: the captioner.
        prompts: with `check` and `missing`.
    """
    unconfirmed = _unconfirmed(drafts, images, model, str(prompts.check))
    for n, draft in enumerate(drafts):
        if draft.structured is None or not any(place == n for place, _ in unconfirmed):
            continue
        kept = [d for i, d in enumerate(draft.structured.differences) if (n, i) not in unconfirmed]
        if not kept:
            draft.reject(DESCRIPTION, "unconfirmed", draft.description)
            draft.description, draft.structured = "", None
        else:
            draft.structured = with_differences(draft.structured, kept)
            draft.description = clean_reply(draft.structured.prose)
    _mark_partial(drafts, images, model, str(prompts.missing))


def _unconfirmed(
    drafts: Sequence[Draft], images: Sequence[tuple[Any, Any]], model: Captioner, template: str
) -> set[tuple[int, int]]:
    """(draft, difference) of those with a side that its own image lacks, or that the other image shows no less.

    A question that the model refuses confirms nothing.
    """
    sides = [
        _Side(n, i, own, clean_reply(text))
        for n, draft in enumerate(drafts)
        if draft.structured is not None
        for i, difference in enumerate(draft.structured.differences)
        for own, text in enumerate(_sides(difference))
        if text
    ]
    requests = [
        Request((images[side.draft][which],), fill_template(template, statement=side.text))
        for side in sides
        for which in (side.own, 1 - side.own)
    ]
    answers = iter(model.yes_probability(requests))
    unconfirmed: set[tuple[int, int]] = set()
    for side in sides:
        own, other = next(answers), next(answers)
        is_seen = not isinstance(own, Refusal) and not isinstance(other, Refusal) and YES <= own > other
        if not is_seen:
            unconfirmed.add((side.draft, side.difference))
    for draft in drafts:
        if draft.structured is not None:
            draft.requests += 2 * sum(bool(text) for d in draft.structured.differences for text in _sides(d))
    return unconfirmed


def _sides(difference: Difference) -> tuple[str, str]:
    """(source, target) as they are to be seen: what was added has no source, what was removed no target."""
    return (
        "" if difference.kind == "added" else difference.source.strip(),
        "" if difference.kind == "removed" else difference.target.strip(),
    )


def with_differences(description: Description, differences: Sequence[Difference]) -> Description:
    """The description with these differences alone, its prose made of them."""
    shared = clean_reply(description.shared).rstrip(".")
    changes = "; ".join(difference.in_prose() for difference in differences)
    prose = f"Both pictures show {shared}. However, {changes}."
    return Description(shared=description.shared, differences=tuple(differences), prose=prose)


def _mark_partial(drafts: Sequence[Draft], images: Sequence[tuple[Any, Any]], model: Captioner, template: str) -> None:
    """Mark drafts whose images differ in more than the confirmed differences."""
    numbers = [n for n, draft in enumerate(drafts) if draft.structured is not None]
    requests = []
    for n in numbers:
        structured = drafts[n].structured
        known = "\n".join(f"- {d.as_text()}" for d in structured.differences) if structured else ""
        requests.append(Request(images[n], fill_template(template, differences=known)))
    for n, yes in zip(numbers, model.yes_probability(requests), strict=True):
        drafts[n].requests += 1
        drafts[n].is_partial = not isinstance(yes, Refusal) and yes >= YES
