"""The retry loop of captioning: send requests, check the replies, send the rejected ones once more."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from tasks.caption.checks import EXPLANATIONS, injection_reason
from tasks.models.llm.requests import Reply
from tasks.prompts.prompt_set import fill_template
from tasks.usage import Usage

QUOTED_CHARS = 600  # of a rejected reply, what its retry quotes
NOT_QUOTED = "(not quoted)"  # stands for a reply with an injected order, or one that is no JSON

Key = TypeVar("Key", bound=Hashable)
KeyIn = TypeVar("KeyIn", bound=Hashable, contravariant=True)


class Rejection(NamedTuple):
    """Why a reply was rejected (a key of `EXPLANATIONS`), and its text as a retry quotes it."""

    reason: str
    text: str


class Conversation(Protocol[KeyIn]):
    """How one kind of requests is sent, and how its replies are checked."""

    def send(self, keys: Sequence[KeyIn], prompts: Sequence[str]) -> list[Reply]:
        """One reply per prompt, in order."""

    def check(self, key: KeyIn, reply: Reply, prompt: str) -> Rejection | None:
        """Store an accepted reply and return None, or say why it is rejected."""


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
    retries = _send_once(prompts, prompts, conversation, retry, counts)
    _send_once(retries, prompts, conversation, retry, counts)
    return list(retries)


def _send_once(
    pending: Mapping[Key, str],
    prompts: Mapping[Key, str],
    conversation: Conversation[Key],
    retry: str,
    counts: Usage,
) -> dict[Key, str]:
    """Send the pending requests; key -> retry request of each rejected reply."""
    if not pending:
        return {}
    replies = conversation.send(list(pending), list(pending.values()))
    retries: dict[Key, str] = {}
    for (key, prompt), reply in zip(pending.items(), replies, strict=True):
        rejection = conversation.check(key, reply, prompt)
        if rejection is None:
            continue
        counts.reject(rejection.reason)
        is_unsafe = rejection.reason == "not_json" or injection_reason(rejection.text) is not None
        quoted = NOT_QUOTED if is_unsafe else rejection.text[:QUOTED_CHARS]
        explanation = EXPLANATIONS[rejection.reason]
        retries[key] = fill_template(retry, prompt=prompts[key], reply=quoted, error=explanation)
    return retries
