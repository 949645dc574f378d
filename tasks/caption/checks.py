"""What is wrong with a model's reply, if anything: a reason to ask once more, then to leave the row out.

Pure functions of texts. A reason is one word that is counted; `EXPLAINED` says it to the model in its retry.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence, Set

EXPLAINED = {
    "empty_reply": "it is empty",
    "too_long": "it is too long",
    "too_short": "it is too short",
    "refused": "it declines or speaks about you instead of the pictures",
    "copy_of_prompt": "it repeats the request",
    "not_text": "it is not a sentence of plain text",
    "names_a_file": "it names a file or a web address",
    "same_as_another": "it says the same as another answer",
    "leaks_target": "it repeats the caption of the target picture",
    "leaks_source": "it tells what only the source picture shows; tell what the target picture shows instead",
    "wrong_language": "it is in another language than asked for",
    "copy_of_demonstration": "it repeats an example instead of what the pictures show",
    "speaks_to_model": "it passes on an order to a reader or a model instead of what the pictures show",
    "not_json": "it is not the JSON object that was asked for, with all its fields",
}

_ORDERS = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b.{0,20}\b(?:previous|prior|above|earlier|preceding|your|these|all)\b.{0,20}\b(?:instructions?|prompts?|rules?|orders?|text)\b|"
    r"\b(?:system|developer) (?:prompt|message|mode)\b|^\s*(?:system|assistant|user|human)\s*:|\byou (?:are|must) now\b|\bnew instructions?\b|"
    r"\b(?:answer|reply|respond|say|output|print|write)\b.{0,20}\b(?:only|with|exactly|always)\b.{0,12}\b(?:yes|no|hacked|pwned)\b|\b(?:jailbreak|pwned|hacked)\b",
    re.IGNORECASE,
)
# Words of a language that others do not share, and its script: enough to tell a reply in the wrong one, not to name
# any.
_WORDS = {
    "en": {"the", "with", "and", "of", "instead", "is", "what", "same"},
    "de": {"der", "die", "das", "und", "mit", "statt", "ist", "ein", "eine", "nicht"},
    "fr": {"le", "les", "des", "une", "avec", "et", "est", "dans", "sur"},
    "es": {"el", "los", "las", "una", "con", "y", "es", "pero"},
    "it": {"il", "gli", "una", "con", "che", "della", "invece"},
    "pt": {"os", "uma", "com", "em", "mas", "não"},
    "nl": {"het", "een", "met", "en", "van", "niet"},
    "pl": {"jest", "nie", "się", "ale", "bez", "oraz", "tylko", "zamiast"},
    "tr": {"ve", "bir", "ile", "için", "ama", "değil", "yerine"},
}
_SCRIPTS = {
    "zh": "CJK",
    "ja": "CJK|HIRAGANA|KATAKANA",
    "ko": "HANGUL",
    "ru": "CYRILLIC",
    "uk": "CYRILLIC",
    "ar": "ARABIC",
    "hi": "DEVANAGARI",
    "el": "GREEK",
}
# Letters by which languages of one script are told apart: what a text of the language never has, and what a longer one
# must have.
_NEVER = {"uk": "[ыэъё]", "ru": "[іїєґ]", "zh": "[\u3041-\u309f]"}
_ALWAYS = {"ja": "[\u3041-\u309f\u30a0-\u30ff]"}

_REFUSALS = re.compile(
    r"\b(i(?:'m| am) (?:sorry|unable|not able)|i (?:cannot|can't|can not|won't|am an? (?:ai|language model))|as an? (?:ai|language model|assistant)|"
    r"(?:cannot|can't|unable to) (?:help|assist|see|view|describe|determine|process)|no images? (?:was|were|is|are)? ?(?:provided|attached|given))",
    re.IGNORECASE,
)
_FILE = re.compile(
    r"https?://|www\.\w|\b[\w-]+\.(?:jpe?g|png|webp|gif|bmp|tiff?|svg|tar|parquet)\b|\b(?:img|dsc)[_-]?\d{3,}\b",
    re.IGNORECASE,
)
# what a small model says about what it never saw
_BABBLE = re.compile(r"\b(\w+(?:\W+\w+)?)(?:\W+\1\b){3,}|([,;:])(?:\s*\2){3,}", re.IGNORECASE)
_CONTROL = re.compile(r"<\|[a-z_]+\|>|</?(?:s|think|image)>|\[/?inst\]", re.IGNORECASE)
_MARKUP = re.compile(r"<\|?/?[a-z_]+\|?>|```|^\s*[\[{].*[\]}]\s*$", re.IGNORECASE | re.DOTALL)


def plain(text: str) -> str:
    """The text's words alone: folded, lower case, no punctuation, single spaces; equal for texts that say the same
    letters.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def cleaned(text: str) -> str:
    """The reply without the wrapping models like: what they thought first, quotes all around, a list mark, `Answer:`;
    inner text untouched.
    """
    text = " ".join(after_thinking(text).split())
    text = re.sub(r"^(?:(?:answer|instruction|query|text)\s*:|[-*•]|\d+[.)])\s+", "", text, flags=re.IGNORECASE)
    while len(text) > 1 and text[0] + text[-1] in ('""', "''", "“”", "``"):
        text = text[1:-1].strip()
    return text


def after_thinking(text: str) -> str:
    """The reply without a closed block of thoughts in front; one that was cut off inside it stays, and is no text."""
    return re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL)


def problem(
    text: str,
    *,
    max_chars: int,
    prompt: str = "",
    others: Sequence[str] = (),
    target_caption: str | None = None,
    leak_share: float | None = None,
    query_caption: str | None = None,
    language: str | None = None,
    demonstrations: Sequence[str] = (),
) -> str | None:
    """The first reason why a reply cannot be used, or None.

    Args:
        text: the reply.
        max_chars: longest reply, characters.
        prompt: what was asked; a reply that holds it, or a line of it (or of what a retry says) of 6 words or more,
            copies it.
        others: replies that stand already; one that says the same is no new one.
        target_caption: caption of the target image; a reply that holds all of it (4 words or more) needs no query
            image.
        leak_share: share of that caption's words from which a reply leaks it, whatever their order; only the whole when
            None.
        query_caption: caption of the query image; a reply that holds all of it gives the query away.
        language: ISO 639-1 code that the reply must be in; unchecked when None or unknown.
        demonstrations: texts shown as examples; a reply that holds one of 4 words or more copies it (fewer words may be
            meant).
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
    if (found := steers(text)) is not None:
        return found
    if language is not None and is_foreign(text, language):
        return "wrong_language"
    if any(len(shown.split()) >= 4 and holds(words, shown) for shown in map(plain, demonstrations)):
        return "copy_of_demonstration"
    if any(
        holds(words, plain(line))
        for line in [*prompt.splitlines(), *EXPLAINED.values()]
        if len(plain(line).split()) >= 6
    ) or (prompt and words == plain(prompt)):
        return "copy_of_prompt"
    if words in {plain(other) for other in others}:
        return "same_as_another"
    if target_caption is not None and leaks(words, plain(target_caption), leak_share):
        return "leaks_target"
    if query_caption is not None and leaks(words, plain(query_caption), None):
        return "leaks_source"
    return None


def steers(text: str) -> str | None:
    """Why a text of any kind may not be handed on: 'speaks_to_model', 'names_a_file', or 'not_text' for a chat's
    control marks; else None.

    Read as a model would: full-width letters as plain ones, invisible characters as none.
    """
    seen = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return (
        "speaks_to_model"
        if _ORDERS.search(seen)
        else "names_a_file"
        if _FILE.search(seen)
        else "not_text"
        if _CONTROL.search(seen)
        else None
    )


def misses_length(text: str, few: int, many: int) -> str | None:
    """'too_short' or 'too_long' where a text has fewer than `few` or more than `many` words; else None."""
    count = len(text.split())
    return "too_short" if count < few else "too_long" if count > many else None


def tells(words: Set[str], secret: Set[str], share: float) -> bool:
    """Whether words hold at least `share` of those that are not to be told; never where there are none."""
    return bool(secret) and len(words & secret) >= share * len(secret)


def leaks(words: str, caption: str, share: float | None) -> bool:
    """Whether a plain text gives a plain caption of 4 words or more away: all of it, or `share` of its different words."""
    wanted = set(caption.split())
    if len(caption.split()) < 4:
        return False
    return holds(words, caption) or (share is not None and len(wanted & set(words.split())) >= share * len(wanted))


def is_foreign(text: str, language: str) -> bool:
    """Whether a text is surely not in `language`: most letters of another script, or words of another language and none
    of its own.
    """
    names = [unicodedata.name(c, "") for c in text if c.isalpha()]
    script = _SCRIPTS.get(language, "LATIN" if language in _WORDS else None)
    if script is None or not names:
        return False
    if sum(name.startswith(tuple(script.split("|"))) for name in names) < 0.5 * len(names):
        return True
    if language in _NEVER and re.search(_NEVER[language], text, re.IGNORECASE):
        return True
    if language in _ALWAYS and len(names) >= 6 and not re.search(_ALWAYS[language], text):
        return True
    words = plain(text).split()
    if language not in _WORDS or len(words) < 6 or any(w in _WORDS[language] for w in words):
        return False
    return any(sum(w in others for w in words) >= 2 for code, others in _WORDS.items() if code != language)


def shared_by_many(texts: Sequence[Sequence[str]], most: int) -> set[str]:
    """Plain texts that stand at more than `most` of the rows; a row counts once."""
    rows: dict[str, int] = {}
    for row in texts:
        for words in {plain(text) for text in row}:
            rows[words] = rows.get(words, 0) + 1
    return {words for words, count in rows.items() if count > most}


def holds(words: str, part: str) -> bool:
    """Whether the plain text `words` holds `part` as whole words, in order."""
    return bool(part) and f" {part} " in f" {words} "


def is_text(text: str) -> bool:
    """Plain words: mostly letters, no control or private characters, no markup, no JSON, not one word or mark over and
    over.
    """
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
