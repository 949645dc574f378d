"""Checks of a model's reply: the reason why it is rejected, if any.

Pure functions of texts. A rejected reply is requested once more; if that is rejected too, the text is left out. A
reason is one word that is counted and published; `EXPLANATIONS` is how a retry states it to the model.

Texts are compared as normalized words (`normalize_words`): NFKC, case-folded, without punctuation, single spaces.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from tasks.prompts.text_rules import TextRules

# reason -> what a retry tells the model; these texts enter models and stay as they are
EXPLANATIONS = {
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
    "contradicts_itself": "it contradicts itself: what is removed or added cannot be changed too",
    "not_in_description": "it states what the description does not state in these words",
    "cut_off": "it did not come to its end",
    "not_json": "it is not the JSON object that was asked for, with all its fields",
}
TOO_DIFFERENT = "too different"  # the whole reply of a model that finds more differences than a text can state

_ORDERS = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b.{0,20}"
    r"\b(?:previous|prior|above|earlier|preceding|your|these|all)\b.{0,20}"
    r"\b(?:instructions?|prompts?|rules?|orders?|text)\b|"
    r"\b(?:system|developer) (?:prompt|message|mode)\b|^\s*(?:system|assistant|user|human)\s*:|"
    r"\byou (?:are|must) now\b|\bnew instructions?\b|"
    r"\b(?:answer|reply|respond|say|output|print|write)\b.{0,20}\b(?:only|with|exactly|always)\b.{0,12}"
    r"\b(?:yes|no|hacked|pwned)\b|\b(?:jailbreak|pwned|hacked)\b",
    re.IGNORECASE,
)
# Function words of a language that few others share, and its script: enough to notice a wrong language, not to
# identify one.
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
# Letters that distinguish languages of one script: those that a text of the language never has, and those of which a
# longer text has at least one.
_NEVER = {"uk": "[ыэъё]", "ru": "[іїєґ]", "zh": "[\u3041-\u309f]"}
_ALWAYS = {"ja": "[\u3041-\u309f\u30a0-\u30ff]"}

# English words that a text may have or lack without saying anything else
_FILLERS = frozenset(["a", "an", "the", "please", "kindly", "just", "simply", "now", "it", "is", "so", "also"])
_REFUSALS = re.compile(
    r"\b(i(?:'m| am) (?:sorry|unable|not able)|"
    r"i (?:cannot|can't|can not|won't|am an? (?:ai|language model))|as an? (?:ai|language model|assistant)|"
    r"(?:cannot|can't|unable to) (?:help|assist|see|view|describe|determine|process)|"
    r"no images? (?:was|were|is|are)? ?(?:provided|attached|given))",
    re.IGNORECASE,
)
_FILE = re.compile(
    r"https?://|www\.\w|\b[\w-]+\.(?:jpe?g|png|webp|gif|bmp|tiff?|svg|tar|parquet)\b|\b(?:img|dsc)[_-]?\d{3,}\b",
    re.IGNORECASE,
)
# loops of words or marks, as small models write them
_REPETITION = re.compile(r"\b(\w+(?:\W+\w+)?)(?:\W+\1\b){3,}|([,;:])(?:\s*\2){3,}", re.IGNORECASE)
_CONTROL = re.compile(r"<\|[a-z_]+\|>|</?(?:s|think|image)>|\[/?inst\]", re.IGNORECASE)
_MARKUP = re.compile(r"<\|?/?[a-z_]+\|?>|```|^\s*[\[{].*[\]}]\s*$", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class ReplyRules:
    """What a reply is checked against.

    Attributes:
        max_chars: longest reply, characters.
        prompt: the request. A reply that is equal to it, or contains a line of 6 words or more of it (or an explanation
            of 6 words or more), copies it.
        accepted: texts that are accepted already; an equal one is no new text.
        target_caption: caption of the target image. A reply that contains all of it (4 words or more) needs no query
            image.
        leak_share: share of that caption's different words, in any order, from which a reply leaks it; only the whole
            caption leaks when None.
        query_caption: caption of the query image; a reply that contains all of it reveals the query image.
        language: ISO 639-1 code that the reply must be in; unchecked when None or unknown.
        demonstrations: example texts in the request. A reply that contains one of 4 words or more copies it; shorter
            ones may be meant.
    """

    max_chars: int
    prompt: str = ""
    accepted: Sequence[str] = ()
    target_caption: str | None = None
    leak_share: float | None = None
    query_caption: str | None = None
    language: str | None = None
    demonstrations: Sequence[str] = ()


def normalize_words(text: str) -> str:
    """The text's words alone: NFKC, case-folded, without punctuation, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def clean_reply(text: str) -> str:
    """The reply without the wrapping that models like: thoughts, quotes all around, a list mark, `Answer:`.

    The inner text is unchanged, but for runs of white space.
    """
    text = " ".join(strip_thoughts(text).split())
    text = re.sub(r"^(?:(?:answer|instruction|query|text)\s*:|[-*•]|\d+[.)])\s+", "", text, flags=re.IGNORECASE)
    while len(text) > 1 and text[0] + text[-1] in ('""', "''", "“”", "``"):
        text = text[1:-1].strip()
    return text


def strip_thoughts(text: str) -> str:
    """The reply without a leading `<think>` block; a block that was cut off stays, and is rejected as no text."""
    return re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL)


def rejection_reason(text: str, rules: ReplyRules) -> str | None:
    """The first reason why a reply is rejected, a key of `EXPLANATIONS`; None where it is accepted."""
    words = normalize_words(text)
    if not text.strip():
        return "empty_reply"
    if len(text) > rules.max_chars:
        return "too_long"
    if not is_plain_text(text):
        return "not_text"
    if _REFUSALS.search(text):
        return "refused"
    if (reason := injection_reason(text)) is not None:
        return reason
    if rules.language is not None and is_other_language(text, rules.language):
        return "wrong_language"
    if any(len(d.split()) >= 4 and contains_phrase(words, d) for d in map(normalize_words, rules.demonstrations)):
        return "copy_of_demonstration"
    if copies_prompt(words, rules.prompt):
        return "copy_of_prompt"
    if says_the_same(words, rules.accepted):
        return "same_as_another"
    if rules.target_caption is not None and leaks_caption(words, rules.target_caption, rules.leak_share):
        return "leaks_target"
    if rules.query_caption is not None and leaks_caption(words, rules.query_caption, None):
        return "leaks_source"
    return None


def says_the_same(words: str, others: Sequence[str]) -> bool:
    """Whether normalized words are those of another text of the pair, in any order, but for words that change nothing,
    such as `please`: two texts of one pair state the same change, so an order of their words is no other change.
    """
    content = Counter(_without_fillers(words))
    return any(words == other or content == Counter(_without_fillers(other)) for other in map(normalize_words, others))


def _without_fillers(words: str) -> list[str]:
    """The words in order without fillers; all of them where there are no others."""
    return [word for word in words.split() if word not in _FILLERS] or words.split()


def copies_prompt(words: str, prompt: str) -> bool:
    """Whether normalized words contain a line of 6 words or more of the request or of a retry, or are the request."""
    lines = [normalize_words(line) for line in [*prompt.splitlines(), *EXPLANATIONS.values()]]
    if any(len(line.split()) >= 6 and contains_phrase(words, line) for line in lines):
        return True
    return bool(prompt) and words == normalize_words(prompt)


def injection_reason(text: str) -> str | None:
    """Why a text of any kind may not be passed on to a model or a reader; None where it may.

    The text is read as a model would read it: full-width letters as plain ones, without invisible characters.

    Returns:
        'speaks_to_model' for an order, 'names_a_file' for a file or web address, 'not_text' for a chat's control marks.
    """
    visible = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    if _ORDERS.search(visible):
        return "speaks_to_model"
    if _FILE.search(visible):
        return "names_a_file"
    return "not_text" if _CONTROL.search(visible) else None


def length_reason(text: str, min_words: int, max_words: int) -> str | None:
    """'too_short' or 'too_long' where a text has fewer or more words than the limits; else None."""
    count = len(text.split())
    return "too_short" if count < min_words else "too_long" if count > max_words else None


def reveals_source(words: Set[str], source_words: Set[str], share: float) -> bool:
    """Whether words contain at least `share` of the words that only the source image explains; False without any."""
    return bool(source_words) and len(words & source_words) >= share * len(source_words)


def leaks_caption(words: str, caption: str, share: float | None) -> bool:
    """Whether normalized words give a caption away: all of it, or `share` of its different words.

    A caption of fewer than 4 words is never given away.
    """
    caption = normalize_words(caption)
    different = set(caption.split())
    if len(caption.split()) < 4:
        return False
    if contains_phrase(words, caption):
        return True
    return share is not None and len(different & set(words.split())) >= share * len(different)


def is_other_language(text: str, language: str) -> bool:
    """Whether a text is surely not in `language` (ISO 639-1).

    That is: most letters are of another script, or there are words of another language and none of its own.
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
    words = normalize_words(text).split()
    if language not in _WORDS or len(words) < 6 or any(w in _WORDS[language] for w in words):
        return False
    return any(sum(w in others for w in words) >= 2 for code, others in _WORDS.items() if code != language)


def common_texts(rows: Sequence[Sequence[str]], max_rows: int) -> set[str]:
    """Normalized texts that more than `max_rows` rows have, a count; a row counts once."""
    counts = Counter(words for row in rows for words in {normalize_words(text) for text in row})
    return {words for words, count in counts.items() if count > max_rows}


def is_in_description(text: str, description: str, rules: TextRules) -> bool:
    """Whether all that a text must take over word by word is in the description that it was written from."""
    words = normalize_words(description)
    return all(contains_phrase(words, normalize_words(part)) for part in rules.verbatim_parts(text))


def contains_phrase(words: str, phrase: str) -> bool:
    """Whether normalized words contain a normalized phrase as whole words, in order."""
    return bool(phrase) and f" {phrase} " in f" {words} "


def is_plain_text(text: str) -> bool:
    """Whether a text is plain words.

    That is: mostly letters, no control or private characters, no markup, no JSON, no word or mark over and over.
    """
    if _MARKUP.search(text) or _REPETITION.search(text) or "\ufffd" in text:
        return False
    if any(unicodedata.category(c) in ("Cc", "Co", "Cn", "Cs") and c not in "\n\t" for c in text):
        return False
    letters = sum(c.isalpha() or c.isspace() for c in text)
    words = normalize_words(text).split()
    if letters < 0.6 * len(text) or not words:
        return False
    if len(words) >= 8 and len(set(words)) <= len(words) // 4:
        return False
    try:
        json.loads(text)
    except ValueError:
        return True
    return False
