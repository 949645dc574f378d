"""Requests and replies, and how every engine counts them: shared by all engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.models.llm.request_cache import RequestCache, image_keys, request_key
from tasks.usage import Usage

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Request:
    """One user turn: images first, then the text.

    Attributes:
        images: of the turn.
        text: after them.
        schema: JSON schema that guides engines with guided decoding.
        max_tokens: longest reply, tokens; the engine's own limit when None.
    """

    images: tuple[Image, ...]
    text: str
    schema: dict[str, Any] | None = field(default=None, compare=False)
    max_tokens: int | None = None


@dataclass(frozen=True)
class Refusal:
    """Why a request has no reply: this request alone cannot be answered.

    Attributes:
        reason: 'request_refused' (a server), or 'bad_image' (a processor in this process).
        detail: the server's or the processor's words.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Reply:
    """What the model wrote.

    Attributes:
        text: stripped; empty for a refusal.
        prompt_tokens, output_tokens: counts.
        is_cut: whether it ended at the longest length instead of its own end.
        refusal: why there is no reply; None where there is one.
    """

    text: str
    prompt_tokens: int
    output_tokens: int
    is_cut: bool = False
    refusal: Refusal | None = None


def reply_row(reply: Reply) -> list[Any]:
    """A reply as plain JSON values."""
    row = [reply.text, reply.prompt_tokens, reply.output_tokens, reply.is_cut]
    return [*row, reply.refusal.reason, reply.refusal.detail] if reply.refusal else row


def reply_from_row(row: Sequence[Any]) -> Reply:
    """Inverse of `reply_row`; rows of earlier releases have three values."""
    text, prompt_tokens, output_tokens = row[:3]
    refusal = Refusal(*row[4:]) if len(row) > 4 else None
    return Reply(text, prompt_tokens, output_tokens, len(row) > 3 and bool(row[3]), refusal)


class UsageTracking:
    """Base of the engines: counts requests and tokens; in process, answers a repeated call from the cache.

    In process the unit of caching is the call, not the request: the last bits of a batch depend on the requests in it,
    so that a reply taken from another batch could change a table. Served replies are cached one by one
    (tasks/models/llm/openai_server.py).
    """

    name: str
    revision: str
    engine: str  # its name and version
    sampling: str  # JSON
    is_on_gpu = False
    usage: Usage
    cache: RequestCache | None

    def _track_usage(self, engine: str, sampling: Mapping[str, Any], cache: RequestCache | None) -> None:
        """Start counting; to be called once the engine's version is known."""
        self.engine, self.sampling = engine, json.dumps(sampling, sort_keys=True)
        self.usage, self.cache = Usage(), cache

    def _cached_replies(
        self, kind: str, requests: Sequence[Request], settings: Mapping[str, Any], make: Callable[[], list[Reply]]
    ) -> list[Reply]:
        """Replies of one call, counted; arguments as of `_cached_call`."""

        def make_rows() -> list[list[Any]]:
            replies = make()
            self.usage.prompt_tokens += sum(r.prompt_tokens for r in replies)
            self.usage.output_tokens += sum(r.output_tokens for r in replies)
            return [reply_row(reply) for reply in replies]

        return [reply_from_row(row) for row in self._cached_call(kind, requests, settings, make_rows)]

    def _cached_call(
        self, kind: str, requests: Sequence[Request], settings: Mapping[str, Any], make: Callable[[], list[Any]]
    ) -> list[Any]:
        """The result of one call, from the cache where this very call was made before.

        Args:
            kind: of the call; part of the cache's key.
            requests: of the call.
            settings: what else decides the result; part of the cache's key.
            make: the call.
        """
        if not requests:
            return []
        key = self._call_key(kind, requests, settings) if self.cache is not None else ""
        cached = self.cache.get(key) if self.cache is not None else None
        if cached is not None:
            self.usage.requests += len(requests)
            self.usage.cached += len(requests)
            return list(cached)
        with self.usage.clock(on_gpu=self.is_on_gpu):
            result = make()
        self.usage.requests += len(requests)
        if self.cache is not None:
            self.cache.put(key, result)
        return result

    def _call_key(self, kind: str, requests: Sequence[Request], settings: Mapping[str, Any]) -> str:
        keys = image_keys(image for r in requests for image in r.images)
        contents = [
            [[keys[id(image)] for image in r.images], r.text, r.schema, *([r.max_tokens] if r.max_tokens else [])]
            for r in requests
        ]
        model = {"model": self.name, "revision": self.revision, "engine": self.engine, "sampling": self.sampling}
        return request_key({"kind": kind, **model, **settings, "asked": contents})
