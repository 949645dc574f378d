"""Caption one chunk of pairs: draft, describe, reverse, write."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.caption.checks import clean_reply
from tasks.caption.confirm import confirm_descriptions
from tasks.caption.draft import Draft, draw_language
from tasks.caption.generate import DescriptionLimits, describe, drop_common_texts, write
from tasks.config import CaptionConfig
from tasks.models.llm.base import Captioner, Writer
from tasks.names import stable_id
from tasks.prompts.prompt_set import PromptSet

DESCRIPTION_CHARS = 4  # longest description, in multiples of the longest instruction

Ends = tuple[str, str]  # ids of the query image and of the target image


@dataclass(frozen=True)
class CaptionSetup:
    """What captions every pair of a part: models, prompts, parameters, seed."""

    captioner: Captioner
    writer: Writer
    prompts: PromptSet
    config: CaptionConfig
    seed: int = 0


def caption_chunk(
    rows: Mapping[str, Sequence[str]],
    images: Mapping[str, Any],
    captions: Mapping[str, str],
    setup: CaptionSetup,
    pair_ids: Container[str] = (),
) -> list[Draft]:
    """Drafts for a chunk of pairs, in their order; with `caption.reverse` those of reversed pairs after them.

    Args:
        rows: columns pair_id, query_image_id, target_image_id.
        images: image_id -> image, of every image named in the rows.
        captions: image_id -> caption, where there is one; replies are checked against them, no model reads them.
        setup: models, prompts, parameters.
        pair_ids: ids of all pairs; none of them is made by reversing another pair.
    """
    ends: list[Ends] = list(zip(rows["query_image_id"], rows["target_image_id"], strict=True))
    drafts = [Draft(p, draw_language(setup.config.languages, setup.seed, p)) for p in rows["pair_id"]]
    if setup.config.reverse:
        reversed_drafts, reversed_ends = reverse_drafts(drafts, ends, setup, pair_ids)
        drafts, ends = drafts + reversed_drafts, ends + reversed_ends
    describe_drafts(drafts, ends, images, setup)
    if setup.prompts.schema is not None:  # without a description there is nothing to reverse
        described = [n for n, d in enumerate(drafts) if d.reverse_of is None or d.structured is not None]
        drafts, ends = [drafts[n] for n in described], [ends[n] for n in described]
    pair_captions = [(captions.get(query), captions.get(target)) for query, target in ends]
    write(drafts, pair_captions, setup.config, setup.writer, setup.prompts, setup.seed)
    if setup.config.same_text_pairs is not None:
        for _ in range(drop_common_texts(drafts, setup.config.same_text_pairs)):
            setup.writer.usage.reject("same_for_many")
    return drafts


def reverse_drafts(
    drafts: Sequence[Draft], ends: Sequence[Ends], setup: CaptionSetup, pair_ids: Container[str]
) -> tuple[list[Draft], list[Ends]]:
    """(drafts, ends) of the pairs that lead from target to query, less those that are among `pair_ids` already."""
    reversed_drafts, reversed_ends = [], []
    for draft, (query, target) in zip(drafts, ends, strict=True):
        pair_id = stable_id(target, query)
        if pair_id in pair_ids:
            continue
        language = draw_language(setup.config.languages, setup.seed, pair_id)
        reversed_drafts.append(Draft(pair_id, language, reverse_of=draft))
        reversed_ends.append((target, query))
    return reversed_drafts, reversed_ends


def describe_drafts(
    drafts: Sequence[Draft], ends: Sequence[Ends], images: Mapping[str, Any], setup: CaptionSetup
) -> None:
    """Fill in the drafts' descriptions.

    The description of a reversed pair is the pair's own with its sides exchanged where descriptions are structured;
    otherwise it is requested with the images exchanged.
    """
    is_structured = setup.prompts.schema is not None
    requested = [n for n, d in enumerate(drafts) if d.reverse_of is None or not is_structured]
    describe(
        [drafts[n] for n in requested],
        [(images[ends[n][0]], images[ends[n][1]]) for n in requested],
        setup.captioner,
        setup.prompts,
        DESCRIPTION_CHARS * setup.config.max_chars,
        limits=DescriptionLimits(setup.config.description_words, setup.config.differences_max),
        seed=setup.seed,
    )
    if setup.config.check_differences:
        of_requested = [(images[ends[n][0]], images[ends[n][1]]) for n in requested]
        confirm_descriptions([drafts[n] for n in requested], of_requested, setup.captioner, setup.prompts)
    for draft in drafts if is_structured else ():
        if draft.reverse_of is not None and draft.reverse_of.structured is not None:
            draft.structured = draft.reverse_of.structured.reverse()
            draft.description = clean_reply(draft.structured.prose)
            draft.is_partial = draft.reverse_of.is_partial
