"""How varied the instructions of triplets are: distinct n-grams, lengths, styles, and texts that say the same.

Distinct n-grams are those of Li et al., arXiv:1510.03055: different n-grams per n-gram. Their share falls with the
number of texts, so it is taken over a fixed number of texts, drawn by the rows' ids: two weeks of different size can be
compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.names import seeded_hash

SAMPLE = 1000  # texts whose n-grams are counted, a count
QUANTILES = (0.1, 0.9)  # of the lengths
# English words that carry the form of a request and not what is asked for; those of a change (`remove`, `no`) stay
FORM_WORDS = frozenset(
    word
    for line in (
        "a an the please kindly just simply now it is are was were be so also and but with of to at in on into as",
        "what if there would could can you make turn change let same keep show image picture",
    )
    for word in line.split()
)


def words(text: str) -> list[str]:
    """The words of a text in lower case, punctuation off."""
    return ["".join(c for c in word if c.isalnum()) for word in text.lower().split()]


def distinct_ngrams(texts: Iterable[str], n: int) -> float | None:
    """Different n-grams per n-gram of the texts, 0..1; None without any."""
    grams = [tuple(tokens[i : i + n]) for tokens in map(words, texts) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def draw_texts(rows: Sequence[Mapping[str, Any]], count: int = SAMPLE) -> list[str]:
    """At most `count` texts of the rows, drawn by (triplet_id, position) alone.

    Args:
        rows: with triplet_id and instructions.
    """
    texts = [(f"{row['triplet_id']}:{n}", text) for row in rows for n, text in enumerate(row["instructions"])]
    return [text for _, text in sorted(texts, key=lambda t: seeded_hash(0, t[0]))[:count]]


def same_content_share(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the texts, those that say what an earlier one of their row says, in another form alone: the same words but for
    FORM_WORDS, in any order. None without a text.

    Args:
        rows: with instructions.
    """
    texts = repeated = 0
    for row in rows:
        seen: list[Counter[str]] = []
        for text in row["instructions"]:
            content = Counter(word for word in words(text) if word not in FORM_WORDS)
            texts, repeated = texts + 1, repeated + (content in seen)
            seen.append(content)
    return repeated / texts if texts else None


def text_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of the rows' texts; empty without a text.

    Args:
        rows: with triplet_id, instructions, styles.
    Returns:
        texts: a count; distinct_1, distinct_2, distinct_3: as of `distinct_ngrams`, over `draw_texts`; words_mean,
        words_low, words_high: words per text, mean and the quantiles 0.1 and 0.9; same_content: as of
        `same_content_share`; styles: style -> share of the texts.
    """
    texts = [text for row in rows for text in row["instructions"]]
    if not texts:
        return {}
    lengths = sorted(len(words(text)) for text in texts)
    low, high = (lengths[int(q * (len(lengths) - 1))] for q in QUANTILES)
    styles = Counter(style for row in rows for style in row["styles"])
    sample = draw_texts(rows)
    return {
        "texts": len(texts),
        **{f"distinct_{n}": distinct_ngrams(sample, n) for n in (1, 2, 3)},
        "words_mean": sum(lengths) / len(lengths),
        "words_low": low,
        "words_high": high,
        "same_content": same_content_share(rows),
        "styles": {style: count / len(texts) for style, count in sorted(styles.items())},
    }
