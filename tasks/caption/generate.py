"""Write a pair's descriptions and instructions with the captioner and the writer, and check each reply."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tasks.caption import checks
from tasks.caption.descriptions import Description, read_description, words_of
from tasks.config import CaptionConfig
from tasks.models.llm.base import Captioner, Writer
from tasks.models.llm.requests import Reply, Request
from tasks.prompts.prompt_set import Prompts, filled, shown
from tasks.prompts.styles import PARTIAL_STYLES, numbered
from tasks.usage import Usage

# a model counts words badly: so much less than the fewest asked for and so much more than the most is taken
WORDS_BESIDE = 0.25
QUOTED_CHARS = 600  # of a refused reply, what its retry shows
LEFT_OUT = "(not quoted)"  # an order that an image gave is not put before a model once more, nor what nobody could read
LANGUAGES = {"en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese", "nl": "Dutch", "zh": "Chinese"} | {
    "ja": "Japanese", "ko": "Korean", "ru": "Russian", "uk": "Ukrainian", "ar": "Arabic", "hi": "Hindi", "el": "Greek", "pl": "Polish", "tr": "Turkish"
}  # fmt: skip


def words_for(between: tuple[int, int], seed: int, pair_id: str) -> int:
    """How many words a pair's description is asked for, drawn by seed and pair alone (the paper draws 60 to 100)."""
    return random.Random(f"{seed}:{pair_id}:words").randint(*between)


def language_of(languages: Sequence[str], seed: int, pair_id: str) -> str:
    """The language of a pair's instructions, drawn by seed and pair alone."""
    return languages[0] if len(languages) == 1 else random.Random(f"{seed}:{pair_id}:language").choice(list(languages))


@dataclass
class Draft:
    """What is written about one pair so far."""

    pair_id: str
    language: str = "en"
    description: str = ""
    form: Description | None = None  # where it was asked for as JSON
    turns: Draft | None = None  # the draft of the pair whose direction this one reverses
    texts: dict[str, str] = field(default_factory=dict)  # style -> instruction
    # what ('description' or a style) -> reason of its last reply
    problems: dict[str, str] = field(default_factory=dict)
    last_reply: dict[str, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    retries: int = 0

    def count(self, reply: Reply) -> None:
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.output_tokens += reply.output_tokens

    def reason(self) -> str:
        """Why the pair is left out: its description's reason, else the most frequent one among its styles."""
        found = Counter(self.problems.values())
        return self.problems.get("description") or min(
            found, key=lambda r: (-found[r], r), default="too_few_instructions"
        )


Key = TypeVar("Key", bound=Hashable)


def ask_twice(
    asked: Mapping[Key, str],
    ask: Callable[[list[Key], list[str]], list[Reply]],
    take: Callable[[Key, Reply, str], tuple[str, str] | None],
    retry: str,
    spent: Usage,
) -> list[Key]:
    """Ask for every key, and once more for those whose reply could not be used, with the reply and what is wrong with
    it.

    Args:
        asked: key -> prompt; asked and taken in this order.
        ask: (keys, their prompts) -> their replies.
        take: (key, reply, prompt) -> None, or the reason why it cannot be used, and its text.
        retry: template with {prompt}, {reply} and {error}.
        spent: where refused replies are counted.
    Returns:
        the keys that were asked for again.
    """
    again: list[Key] = []
    todo = dict(asked)
    for is_retry in (False, True):
        if not todo:
            break
        keys, prompts = list(todo), list(todo.values())
        again = keys if is_retry else []
        todo = {}
        for key, prompt, reply in zip(keys, prompts, ask(keys, prompts), strict=True):
            refused = take(key, reply, prompt)
            if refused is not None:
                reason, text = refused
                spent.reject(reason)
                quoted = LEFT_OUT if reason == "not_json" or checks.steers(text) else text[:QUOTED_CHARS]
                todo[key] = filled(retry, prompt=asked[key], reply=quoted, error=checks.EXPLAINED[reason])
    return again


def describe(
    drafts: Sequence[Draft],
    images: Sequence[tuple[Any, Any]],
    model: Captioner,
    prompts: Prompts,
    max_chars: int,
    *,
    words: tuple[int, int] = (60, 100),
    seed: int = 0,
) -> None:
    """Fill in the drafts' descriptions; one retry for a reply that fails its check."""
    few, many = int(words[0] * (1 - WORDS_BESIDE)), int(words[1] * (1 + WORDS_BESIDE))

    def take(n: int, reply: Reply, prompt: str) -> tuple[str, str] | None:
        draft, text = drafts[n], checks.cleaned(reply.text)
        draft.count(reply)
        form, found = None, None
        if prompts.schema is not None:
            form = read_description(reply.text)
            if form is None:
                found = "not_json"
            else:
                text = checks.cleaned(form.prose)
                found = next(
                    (reason for side in form.fields() if (reason := checks.steers(side))), None
                ) or checks.misses_length(text, few, many)
        found = found or checks.problem(text, max_chars=max_chars, prompt=prompt)
        if found is not None:
            draft.problems["description"], draft.last_reply["description"] = found, text
            return found, text
        draft.description, draft.form = text, form
        draft.problems.pop("description", None)
        return None

    asked = {n: prompts.describing(words_for(words, seed, d.pair_id)) for n, d in enumerate(drafts)}
    again = ask_twice(
        asked,
        lambda keys, texts: model.chat(
            [Request(images[n], text, prompts.schema) for n, text in zip(keys, texts, strict=True)]
        ),
        take,
        prompts.retry,
        model.spent,
    )
    for n in again:
        drafts[n].retries += 1


def write(
    drafts: Sequence[Draft],
    captions: Sequence[tuple[str | None, str | None]],
    config: CaptionConfig,
    model: Writer,
    prompts: Prompts,
    seed: int = 0,
) -> None:
    """Fill in the drafts' instructions, one per style and all different; one retry for a reply that fails its check.

    `captions` are those of each draft's query and target images.
    """
    asked: dict[tuple[int, str], str] = {}
    examples: dict[tuple[int, str], list[str]] = {}
    for n, draft in enumerate(drafts):
        for style in config.styles if draft.description else ():
            name, number = numbered(style)
            description: str | None = draft.description
            if name in PARTIAL_STYLES and draft.form is not None:
                description = draft.form.of_one(number)
            if description is None:
                continue
            chosen = shown(prompts.demonstrations, name, config.demonstrations, seed, draft.pair_id)
            examples[n, style] = [d["texts"][name] for d in chosen]
            text = "\n\n".join(f"Description: {d['description']}\nText: {d['texts'][name]}" for d in chosen)
            language = LANGUAGES.get(draft.language, draft.language)
            asked[n, style] = filled(
                prompts.write, style=name, description=description, demonstrations=text, language=language
            )

    def take(key: tuple[int, str], reply: Reply, prompt: str) -> tuple[str, str] | None:
        (n, style), text = key, checks.cleaned(reply.text)
        draft, (query_caption, target_caption) = drafts[n], captions[n]
        draft.count(reply)
        found = checks.problem(
            text,
            max_chars=config.max_chars,
            prompt=prompt,
            others=list(draft.texts.values()),
            target_caption=target_caption,
            leak_share=config.leak_share,
            query_caption=None if config.source_share is None else query_caption,
            language=draft.language,
            demonstrations=examples[key],
        )
        if found is None and config.source_share is not None and draft.form is not None and draft.language == "en":
            found = (
                "leaks_source" if checks.tells(words_of(text), draft.form.source_words(), config.source_share) else None
            )
        if found is not None:
            draft.problems[style], draft.last_reply[style] = found, text
            return found, text
        draft.texts[style] = text
        draft.problems.pop(style, None)
        return None

    for n, _ in ask_twice(asked, lambda _, texts: model.write(texts), take, prompts.retry, model.spent):
        drafts[n].retries += 1


def leave_out_common(drafts: Sequence[Draft], most: int) -> int:
    """Take out the texts that more than `most` of the drafts have in common; how many were taken."""
    said_often = checks.shared_by_many([list(d.texts.values()) for d in drafts], most)
    described_often = checks.shared_by_many([[d.description] for d in drafts if d.description], most)
    taken = 0
    for draft in drafts:
        for style, text in list(draft.texts.items()):
            if checks.plain(text) in said_often:
                draft.problems[style] = "same_for_many"
                draft.last_reply[style] = draft.texts.pop(style)
                taken += 1
        if draft.description and checks.plain(draft.description) in described_often:
            draft.problems["description"] = "same_for_many"
            draft.last_reply["description"], draft.description = draft.description, ""
            taken += 1
    return taken
