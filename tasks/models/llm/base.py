"""The Captioner and Writer protocols: what every engine offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tasks.models.llm.requests import Reply, Request
from tasks.usage import Usage


class Captioner(Protocol):
    """What stages need of a multimodal LLM."""

    name: str
    revision: str
    engine: str  # its name and version
    sampling: str  # JSON
    spent: Usage

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        """One greedy reply per request, in order."""

    def yes_probability(self, requests: Sequence[Request]) -> list[float]:
        """P(yes) among yes and no at the first answer token, one per request, in order; 0..1."""


class Writer(Protocol):
    """What stages need of a text LLM."""

    name: str
    revision: str
    engine: str  # its name and version
    sampling: str  # JSON
    spent: Usage

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        """One greedy reply per prompt, in order."""
