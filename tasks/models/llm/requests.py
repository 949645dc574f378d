"""What a model is asked and what it answers, and the engine's way to count it: shared by all engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.models.llm.request_cache import RequestCache, image_keys, key_of
from tasks.usage import Usage

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Request:
    """One user turn: images first, then the text. `schema`, a JSON schema, guides engines that can be guided."""

    images: tuple[Image, ...]
    text: str
    schema: dict[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Reply:
    """What the model wrote, stripped, and the tokens it took: counts."""

    text: str
    prompt_tokens: int
    output_tokens: int


class Accounted:
    """An engine that counts what it is asked, and in process answers a call that was made before from the cache.

    In process the unit is the call, not the request: a batch's last bits depend on who else is in it, so a reply taken
    out of another batch could change a table. A served reply is cached alone (tasks/models/llm/openai_server.py).
    """

    name: str
    revision: str
    engine: str  # its name and version
    sampling: str  # JSON
    is_on_gpu = False
    spent: Usage
    cache: RequestCache | None

    def _account(self, engine: str, sampling: dict[str, Any], cache: RequestCache | None) -> None:
        self.engine, self.sampling = engine, json.dumps(sampling, sort_keys=True)
        self.spent, self.cache = Usage(), cache

    def _texts(
        self, kind: str, requests: Sequence[Request], facts: dict[str, Any], make: Callable[[], list[Reply]]
    ) -> list[Reply]:
        """Replies of one call, counted; from the cache where this very call was made before."""

        def fresh() -> list[list[Any]]:
            replies = make()
            self.spent.prompt_tokens += sum(r.prompt_tokens for r in replies)
            self.spent.output_tokens += sum(r.output_tokens for r in replies)
            return [[r.text, r.prompt_tokens, r.output_tokens] for r in replies]

        return [Reply(*row) for row in self._once(kind, requests, facts, fresh)]

    def _once(
        self, kind: str, requests: Sequence[Request], facts: dict[str, Any], make: Callable[[], list[Any]]
    ) -> list[Any]:
        self.spent.requests += len(requests)
        if not requests:
            return []
        key = ""
        if self.cache is not None:
            images = image_keys(i for r in requests for i in r.images)
            asked = [[[images[id(i)] for i in r.images], r.text, r.schema] for r in requests]
            who = {"model": self.name, "revision": self.revision, "engine": self.engine, "sampling": self.sampling}
            key = key_of({"kind": kind, **who, **facts, "asked": asked})
            found = self.cache.get(key)
            if found is not None:
                self.spent.cached += len(requests)
                return list(found)
        with self.spent.clock(on_gpu=self.is_on_gpu):
            made = make()
        if self.cache is not None:
            self.cache.put(key, made)
        return made
