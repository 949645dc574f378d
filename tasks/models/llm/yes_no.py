"""P(yes) from log-probabilities of the first answer token, as servers and vLLM report them."""

from __future__ import annotations

import math
from collections.abc import Iterable

TOP_LOGPROBS = 20  # most likely tokens that are requested, a count


def yes_probability(top_logprobs: Iterable[tuple[str, float]]) -> float:
    """P(yes) among yes and no, 0..1, in any spelling of case and white space; 0 where neither is there.

    Args:
        top_logprobs: (token, log-probability) of the most likely first tokens.
    """
    sums = {"yes": 0.0, "no": 0.0}
    for token, logprob in top_logprobs:
        word = token.strip().lower()
        if word in sums:
            sums[word] += math.exp(logprob)
    both = sums["yes"] + sums["no"]
    return sums["yes"] / both if both else 0.0
