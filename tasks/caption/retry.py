"""The retry loop of captioning: send requests, check the replies, send the rejected ones once more.

A rejected reply is requested again with its reason; one that was cut off at the longest length is requested again as it
was, with twice the room. Not sent again are a request that the model's server or processor refuses (`Reply.refusal`),
and one whose reply is an answer: that the images are too different (`FINAL`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from tasks.caption.checks import EXPLANATIONS, injection_reason
from tasks.models.llm.requests import Refusal, Reply
from tasks.prompts.prompt_set import fill_template
from tasks.usage import Usage

QUOTED_CHARS = 600  # of a rejected reply, what its retry quotes
CUT_OFF = "cut_off"  # reason of a reply that ended at the longest length
FINAL = frozenset({"too_different"})  # reasons of replies that are answers
MORE_ROOM = 2  # longest length of its retry, in multiples of the first one
NOT_QUOTED = "(not quoted)"  # stands for a reply with an injected order, or one that is no JSON

Key = TypeVar("Key", bound=Hashable)
KeyIn = TypeVar("KeyIn", bound=Hashable, contravariant=True)


class Rejection(NamedTuple):
    """Why a reply was rejected (a key of `EXPLANATIONS`), and its text as a retry quotes it."""

    reason: str
    text: str


class Conversation(Protocol[KeyIn]):
    """How one kind of requests is sent, and how its replies are checked."""

    def send(self, keys: Sequence[KeyIn], prompts: Sequence[str], *, has_more_room: bool = False) -> list[Reply]:
        """One reply per prompt, in order; of MORE_ROOM times the usual length where `has_more_room`."""

    def check(self, key: KeyIn, reply: Reply, prompt: str) -> Rejection | None:
        """Store an accepted reply and return None, or say why it is rejected."""

    def refuse(self, key: KeyIn, refusal: Refusal) -> None:
        """Note that a request cannot be answered."""


def send_with_retry(
    prompts: Mapping[Key, str], conversation: Conversation[Key], retry: str, counts: Usage
) -> list[Key]:
    """Send every prompt, and once more those whose reply was rejected, with the reply and its reason.

    Args:
        prompts: key -> prompt, sent and checked in this order.
        conversation: how to send and check them.
        retry: template with {prompt}, {reply} and {error}.
        counts: where rejected replies are counted.
    Returns:
        The keys that were sent again.
    """
    rejected = {k: r for k, r in _send_once(prompts, conversation, counts).items() if r.reason not in FINAL}
    cut = {key: prompts[key] for key, rejection in rejected.items() if rejection.reason == CUT_OFF}
    others = {key: _retry_prompt(retry, prompts[key], r) for key, r in rejected.items() if key not in cut}
    _send_once(others, conversation, counts)
    _send_once(cut, conversation, counts, has_more_room=True)
    return list(rejected)


def _send_once(
    prompts: Mapping[Key, str], conversation: Conversation[Key], counts: Usage, *, has_more_room: bool = False
) -> dict[Key, Rejection]:
    """Send requests; key -> why its reply is rejected."""
    if not prompts:
        return {}
    keys, texts = list(prompts), list(prompts.values())
    replies = conversation.send(keys, texts, has_more_room=True) if has_more_room else conversation.send(keys, texts)
    rejected: dict[Key, Rejection] = {}
    for key, prompt, reply in zip(keys, texts, replies, strict=True):
        if reply.refusal is not None:
            counts.reject(reply.refusal.reason)
            conversation.refuse(key, reply.refusal)
        elif (rejection := conversation.check(key, reply, prompt)) is not None:
            counts.reject(rejection.reason)
            rejected[key] = rejection
    return rejected


def _retry_prompt(retry: str, prompt: str, rejection: Rejection) -> str:
    """The request with a rejected reply and its reason; unsafe replies are not quoted."""
    is_unsafe = rejection.reason == "not_json" or injection_reason(rejection.text) is not None
    quoted = NOT_QUOTED if is_unsafe else rejection.text[:QUOTED_CHARS]
    return fill_template(retry, prompt=prompt, reply=quoted, error=EXPLANATIONS[rejection.reason])
