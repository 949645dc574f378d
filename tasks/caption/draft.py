"""What is written about one pair while it is captioned, and what is drawn for it by the seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.caption.descriptions import Description
from tasks.models.llm.requests import Refusal, Reply

DESCRIPTION = "description"  # key of a description beside the styles, in `rejections` and `rejected_replies`


@dataclass
class Draft:
    """The texts of one pair, what was rejected, and what they took.

    Attributes:
        pair_id: of the pair.
        language: ISO 639-1 code of its instructions.
        description: accepted description; empty where there is none.
        structured: the description as parsed JSON, where the prompt set asks for JSON.
        reverse_of: the draft of the pair whose direction this one reverses.
        instructions: style -> accepted instruction.
        rejections: 'description' or style -> reason why its last reply was rejected.
        rejected_replies: 'description' or style -> that reply.
        prompt_tokens, output_tokens, requests: what the replies took, counts, retries included.
        retries: requests that were sent again, a count.
        is_partial: whether the images are known to differ in more than the description states.
        refusals: the words of the model's server or processor for requests that it refused.
    """

    pair_id: str
    language: str = "en"
    description: str = ""
    structured: Description | None = None
    reverse_of: Draft | None = None
    instructions: dict[str, str] = field(default_factory=dict)
    rejections: dict[str, str] = field(default_factory=dict)
    rejected_replies: dict[str, str] = field(default_factory=dict)
    prompt_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    retries: int = 0
    is_partial: bool = False
    refusals: list[str] = field(default_factory=list)

    def count_reply(self, reply: Reply) -> None:
        """Add a reply's request and tokens."""
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.output_tokens += reply.output_tokens

    def reject(self, key: str, reason: str, text: str) -> None:
        """Note the rejected reply of a key ('description' or a style)."""
        self.rejections[key], self.rejected_replies[key] = reason, text

    def refuse(self, key: str, refusal: Refusal) -> None:
        """Note that the request of a key cannot be answered; its words take the place of the reply."""
        self.requests += 1
        self.refusals.append(refusal.detail)
        self.reject(key, refusal.reason, refusal.detail)

    def drop_reason(self) -> str:
        """Why the pair is dropped: its description's rejection, else the most frequent one among its styles."""
        if self.is_partial and DESCRIPTION not in self.rejections:
            return "incomplete_description"
        counts = Counter(self.rejections.values())
        most_frequent = min(counts, key=lambda reason: (-counts[reason], reason), default="too_few_instructions")
        return self.rejections.get(DESCRIPTION) or most_frequent


def draw_word_count(between: tuple[int, int], seed: int, pair_id: str) -> int:
    """How many words a pair's description is asked for, drawn by seed and pair alone (the paper draws 60 to 100)."""
    return random.Random(f"{seed}:{pair_id}:words").randint(*between)


def draw_language(languages: Sequence[str], seed: int, pair_id: str) -> str:
    """The language of a pair's instructions, drawn by seed and pair alone."""
    return languages[0] if len(languages) == 1 else random.Random(f"{seed}:{pair_id}:language").choice(list(languages))
