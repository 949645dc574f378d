"""What is wrong with a model's reply, if anything: a reason to ask once more, then to leave the row out.

Pure functions of texts. A reason is one word that is counted; `EXPLAINED` says it to the model in its retry.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence

EXPLAINED = {
    "empty_reply": "it is empty",
    "too_long": "it is too long",
    "refused": "it declines or speaks about you instead of the pictures",
    "copy_of_prompt": "it repeats the request",
    "not_text": "it is not a sentence of plain text",
    "names_a_file": "it names a file or a web address",
    "same_as_another": "it says the same as another answer",
    "leaks_target": "it repeats the whole caption of the target picture",
}

_REFUSALS = re.compile(
    r"\b(i(?:'m| am) (?:sorry|unable|not able)|i (?:cannot|can't|can not|won't|am an? (?:ai|language model))|as an? (?:ai|language model|assistant)|"
    r"(?:cannot|can't|unable to) (?:help|assist|see|view|describe|determine|process)|no images? (?:was|were|is|are)? ?(?:provided|attached|given))",
    re.IGNORECASE,
)
_FILE = re.compile(r"https?://|www\.\w|\b[\w-]+\.(?:jpe?g|png|webp|gif|bmp|tiff?|svg|tar|parquet)\b|\b(?:img|dsc)[_-]?\d{3,}\b", re.IGNORECASE)
_BABBLE = re.compile(r"\b(\w+(?:\W+\w+)?)(?:\W+\1\b){3,}|([,;:])(?:\s*\2){3,}", re.IGNORECASE)  # what a small model says about what it never saw
_MARKUP = re.compile(r"<\|?/?[a-z_]+\|?>|```|^\s*[\[{].*[\]}]\s*$", re.IGNORECASE | re.DOTALL)


def plain(text: str) -> str:
    """The text's words alone: folded, lower case, no punctuation, single spaces; equal for texts that say the same letters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def cleaned(text: str) -> str:
    """The reply without the wrapping models like: quotes all around, a list mark, `Answer:`; inner text untouched."""
    text = " ".join(text.split())
    text = re.sub(r"^(?:(?:answer|instruction|query|text)\s*:|[-*•]|\d+[.)])\s+", "", text, flags=re.IGNORECASE)
    while len(text) > 1 and text[0] + text[-1] in ('""', "''", "“”", "``"):
        text = text[1:-1].strip()
    return text


def problem(text: str, *, max_chars: int, prompt: str = "", others: Sequence[str] = (), target_caption: str | None = None) -> str | None:
    """The first reason why a reply cannot be used, or None.

    Args:
        text: the reply.
        max_chars: longest reply, characters.
        prompt: what was asked; a reply that holds it, or a line of it of 6 words or more, copies it.
        others: replies that stand already; one that says the same is no new one.
        target_caption: caption of the target picture; a reply that holds all of it (4 words or more) needs no query picture.
    Returns:
        A key of `EXPLAINED`.
    """
    words = plain(text)
    if not text.strip():
        return "empty_reply"
    if len(text) > max_chars:
        return "too_long"
    if not is_text(text):
        return "not_text"
    if _REFUSALS.search(text):
        return "refused"
    if _FILE.search(text):
        return "names_a_file"
    if any(holds(words, plain(line)) for line in prompt.splitlines() if len(plain(line).split()) >= 6) or (prompt and words == plain(prompt)):
        return "copy_of_prompt"
    if words in {plain(other) for other in others}:
        return "same_as_another"
    if target_caption is not None and len(plain(target_caption).split()) >= 4 and holds(words, plain(target_caption)):
        return "leaks_target"
    return None


def holds(words: str, part: str) -> bool:
    """Whether the plain text `words` holds `part` as whole words, in order."""
    return bool(part) and f" {part} " in f" {words} "


def is_text(text: str) -> bool:
    """Plain words: mostly letters, no control or private characters, no markup, no JSON, not one word or mark over and over."""
    if _MARKUP.search(text) or _BABBLE.search(text) or "\ufffd" in text:
        return False
    if any(unicodedata.category(c) in ("Cc", "Co", "Cn", "Cs") and c not in "\n\t" for c in text):
        return False
    letters = sum(c.isalpha() or c.isspace() for c in text)
    words = plain(text).split()
    if letters < 0.6 * len(text) or not words:
        return False
    if len(words) >= 8 and len(set(words)) <= len(words) // 4:
        return False
    try:
        json.loads(text)
    except ValueError:
        return True
    return False
