"""Write a pair's description with the captioner and its instructions with the writer; every reply is checked.

Two steps, as in MegaPairs (arXiv:2412.14475, section 3.1): the captioner describes what two images share and what
differs, the writer turns the description into one instruction per style.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.caption.checks import (
    TOO_DIFFERENT,
    ReplyRules,
    clean_reply,
    common_texts,
    injection_reason,
    is_in_description,
    length_reason,
    normalize_words,
    rejection_reason,
    reveals_source,
)
from tasks.caption.descriptions import Description, content_words, parse_description
from tasks.caption.draft import DESCRIPTION, Draft, draw_word_count
from tasks.caption.retry import CUT_OFF, MORE_ROOM, Rejection, send_with_retry
from tasks.config import CaptionConfig
from tasks.models.llm.base import Captioner, Writer
from tasks.models.llm.requests import Refusal, Reply, Request
from tasks.prompts.prompt_set import PromptSet, fill_template, sample_demonstrations
from tasks.prompts.styles import PARTIAL_STYLES, split_style
from tasks.prompts.text_rules import TextRules

# Models count words badly: lengths are accepted from this share below the least to this share above the most.
LENGTH_TOLERANCE = 0.25
LANGUAGES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "nl": "Dutch",
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
    "ru": "Russian",
    "uk": "Ukrainian",
    "ar": "Arabic",
    "hi": "Hindi",
    "el": "Greek",
    "pl": "Polish",
    "tr": "Turkish",
}


@dataclass(frozen=True)
class DescriptionLimits:
    """What a description may be.

    Attributes:
        words: least and most words asked for; a number between them is drawn for each pair.
        differences_max: most differences of a structured description, a count; any number when None.
    """

    words: tuple[int, int] = (60, 100)
    differences_max: int | None = None


def describe(
    drafts: Sequence[Draft],
    images: Sequence[tuple[Any, Any]],
    model: Captioner,
    prompts: PromptSet,
    max_chars: int,
    *,
    limits: DescriptionLimits | None = None,
    seed: int = 0,
) -> None:
    """Fill in the drafts' descriptions; one retry for a rejected reply.

    Args:
        drafts: one per pair.
        images: (source, target) of each draft.
        model: the captioner.
        prompts: the prompt set.
        max_chars: longest description, characters.
        limits: of a description's length and differences; the defaults when None.
        seed: of the draws.
    """
    limits = limits or DescriptionLimits()
    conversation = _Descriptions(drafts, images, model, prompts, max_chars, limits)
    requests = {
        n: prompts.description_request(draw_word_count(limits.words, seed, d.pair_id)) for n, d in enumerate(drafts)
    }
    for n in send_with_retry(requests, conversation, prompts.retry, model.usage):
        drafts[n].retries += 1


@dataclass(frozen=True)
class _Descriptions:
    """Requests for descriptions; a key is the draft's position."""

    drafts: Sequence[Draft]
    images: Sequence[tuple[Any, Any]]
    model: Captioner
    prompts: PromptSet
    max_chars: int
    limits: DescriptionLimits

    def send(self, keys: Sequence[int], prompts: Sequence[str], *, has_more_room: bool = False) -> list[Reply]:
        schema, limit = self.prompts.schema, MORE_ROOM * self.model.max_new_tokens if has_more_room else None
        return self.model.chat(
            [Request(self.images[n], text, schema, limit) for n, text in zip(keys, prompts, strict=True)]
        )

    def refuse(self, key: int, refusal: Refusal) -> None:
        self.drafts[key].refuse(DESCRIPTION, refusal)

    def check(self, key: int, reply: Reply, prompt: str) -> Rejection | None:
        draft = self.drafts[key]
        draft.count_reply(reply)
        structured, text, reason = None, clean_reply(reply.text), CUT_OFF if reply.is_cut else None
        if normalize_words(text) == TOO_DIFFERENT:
            reason = "too_different"
        if self.prompts.schema is not None and reason is None:
            structured = parse_description(reply.text)
            if structured is None:
                reason = "not_json"
            else:
                text = clean_reply(structured.prose)
                most = self.limits.differences_max
                if most is not None and len(structured.differences) > most:
                    reason = "too_different"
                unsafe = (injection_reason(short) for short in structured.short_texts())
                unsafe_reason = next((r for r in unsafe if r is not None), None)
                reason = unsafe_reason or reason or self._length_reason(text)
        reason = reason or rejection_reason(text, ReplyRules(self.max_chars, prompt))
        if reason is None and self._contradicts_itself(text, structured):
            reason = "contradicts_itself"
        if reason is not None:
            draft.reject(DESCRIPTION, reason, text)
            return Rejection(reason, text)
        draft.description, draft.structured = text, structured
        draft.rejections.pop(DESCRIPTION, None)
        return None

    def _contradicts_itself(self, text: str, structured: Description | None) -> bool:
        in_fields = structured is not None and structured.contradicts_itself()
        return in_fields or self.prompts.rules.contradicts_itself(text)

    def _length_reason(self, text: str) -> str | None:
        least, most = self.limits.words
        return length_reason(text, int(least * (1 - LENGTH_TOLERANCE)), int(most * (1 + LENGTH_TOLERANCE)))


InstructionKey = tuple[int, str]  # position of the draft, style


@dataclass(frozen=True)
class InstructionRequest:
    """A request for one instruction, and the description and the demonstration texts in it."""

    prompt: str
    description: str
    demonstrations: tuple[str, ...]


def write(
    drafts: Sequence[Draft],
    captions: Sequence[tuple[str | None, str | None]],
    config: CaptionConfig,
    model: Writer,
    prompts: PromptSet,
    seed: int = 0,
) -> None:
    """Fill in the drafts' instructions, one per style and all different; one retry for a rejected reply.

    Args:
        drafts: with their descriptions; one without is passed over.
        captions: of each draft's query and target image, None where there is none.
        config: styles, limits and thresholds.
        model: the writer.
        prompts: the prompt set.
        seed: of the demonstrations drawn.
    """
    requests = instruction_requests(drafts, config, prompts, seed)
    conversation = _Instructions(drafts, captions, config, model, requests, prompts.rules)
    texts = {key: request.prompt for key, request in requests.items()}
    for n, _ in send_with_retry(texts, conversation, prompts.retry, model.usage):
        drafts[n].retries += 1


def instruction_requests(
    drafts: Sequence[Draft], config: CaptionConfig, prompts: PromptSet, seed: int
) -> dict[InstructionKey, InstructionRequest]:
    """The requests to the writer, draft by draft and style by style.

    A draft that is known to be partial gets texts of partial styles alone. A partial style gets the description of one
    difference where the description is structured; where there are fewer differences than its number, it is not
    requested.
    """
    requests: dict[InstructionKey, InstructionRequest] = {}
    for n, draft in enumerate(drafts):
        for style in config.styles if draft.description else ():
            name, number = split_style(style)
            description: str | None = draft.description
            if draft.is_partial and name not in PARTIAL_STYLES:
                continue
            if name in PARTIAL_STYLES and draft.structured is not None:
                description = draft.structured.difference_in_prose(number)
            if description is None:
                continue
            rows = sample_demonstrations(prompts.demonstrations, name, config.demonstrations, seed, draft.pair_id)
            prompt = fill_template(
                prompts.write,
                style=name,
                description=description,
                demonstrations="\n\n".join(f"Description: {d['description']}\nText: {d['texts'][name]}" for d in rows),
                language=LANGUAGES.get(draft.language, draft.language),
            )
            requests[n, style] = InstructionRequest(prompt, description, tuple(d["texts"][name] for d in rows))
    return requests


@dataclass(frozen=True)
class _Instructions:
    """Requests for instructions."""

    drafts: Sequence[Draft]
    captions: Sequence[tuple[str | None, str | None]]
    config: CaptionConfig
    model: Writer
    requests: dict[InstructionKey, InstructionRequest]
    text_rules: TextRules

    def send(
        self, keys: Sequence[InstructionKey], prompts: Sequence[str], *, has_more_room: bool = False
    ) -> list[Reply]:
        if has_more_room:
            return self.model.write(prompts, max_tokens=MORE_ROOM * self.model.max_new_tokens)
        return self.model.write(prompts)

    def refuse(self, key: InstructionKey, refusal: Refusal) -> None:
        self.drafts[key[0]].refuse(key[1], refusal)

    def check(self, key: InstructionKey, reply: Reply, prompt: str) -> Rejection | None:
        (n, style), text = key, clean_reply(reply.text)
        draft = self.drafts[n]
        draft.count_reply(reply)
        reason = CUT_OFF if reply.is_cut else rejection_reason(text, self._rules(key, prompt))
        reason = reason or self._source_reason(draft, text) or self._rule_reason(key, text)
        if reason is not None:
            draft.reject(style, reason, text)
            return Rejection(reason, text)
        draft.instructions[style] = text
        draft.rejections.pop(style, None)
        return None

    def _rules(self, key: InstructionKey, prompt: str) -> ReplyRules:
        draft, (query_caption, target_caption) = self.drafts[key[0]], self.captions[key[0]]
        return ReplyRules(
            max_chars=self.config.max_chars,
            prompt=prompt,
            accepted=list(draft.instructions.values()),
            target_caption=target_caption,
            leak_share=self.config.leak_share,
            query_caption=None if self.config.source_share is None else query_caption,
            language=draft.language,
            demonstrations=self.requests[key].demonstrations,
        )

    def _source_reason(self, draft: Draft, text: str) -> str | None:
        """'leaks_source' for an English text with too many of the words that only the source image explains."""
        share = self.config.source_share
        if share is None or draft.structured is None or draft.language != "en":
            return None
        return "leaks_source" if reveals_source(content_words(text), draft.structured.source_words(), share) else None

    def _rule_reason(self, key: InstructionKey, text: str) -> str | None:
        """Why the prompt set's rules reject a text, if they do."""
        if self.text_rules.contradicts_itself(text):
            return "contradicts_itself"
        is_stated = is_in_description(text, self.requests[key].description, self.text_rules)
        return None if is_stated else "not_in_description"


def drop_common_texts(drafts: Sequence[Draft], max_drafts: int) -> int:
    """Drop descriptions and instructions that more than `max_drafts` of the drafts have in common.

    Returns:
        How many were dropped.
    """
    instructions = common_texts([list(d.instructions.values()) for d in drafts], max_drafts)
    descriptions = common_texts([[d.description] for d in drafts if d.description], max_drafts)
    count = 0
    for draft in drafts:
        for style, text in list(draft.instructions.items()):
            if normalize_words(text) in instructions:
                draft.reject(style, "same_for_many", draft.instructions.pop(style))
                count += 1
        if draft.description and normalize_words(draft.description) in descriptions:
            draft.reject(DESCRIPTION, "same_for_many", draft.description)
            draft.description = ""
            count += 1
    return count
