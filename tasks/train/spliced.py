"""Captions that are spliced from two, for a model to be held on (docs/decisions/0188)."""

from __future__ import annotations

import random
from collections.abc import Sequence


def with_spliced(texts: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """The texts, a share of them spliced with another one: the first words of the one and the last of the other.

    Both are cut at the same place in relation to their length, somewhere in the middle half. What a model is held on
    then are thousands of texts that look like captions, in the place of those that it would learn by heart.

    Args:
        texts: n captions; one of a single word, or of a language that writes no spaces, stays whole.
        share: chance of each, 0 to 1.
        rng: of the draws.
    """
    others = rng.sample(texts, len(texts))
    spliced = []
    for text, other in zip(texts, others, strict=True):
        words, further = text.split(), other.split()
        if rng.random() < share and min(len(words), len(further)) > 1:
            cut = rng.uniform(0.25, 0.75)
            text = " ".join(words[: round(cut * len(words))] + further[round(cut * len(further)) :])
        spliced.append(text)
    return spliced
