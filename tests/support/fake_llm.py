"""A captioner, writer and judge in one that answers by rule and keeps its requests."""

from collections.abc import Callable, Sequence

from tasks.models.llm.requests import Reply, Request
from tasks.usage import Usage

PROMPT_TOKENS, OUTPUT_TOKENS = 10, 2  # of every reply


class FakeLlm:
    """`reply` answers a request in words, `yes` with P(yes)."""

    name, revision, engine, sampling = "fake", "0123456789ab", "fake 1", "{}"

    def __init__(
        self, reply: Callable[[Request], str] = lambda _: "", yes: Callable[[Request], float] = lambda _: 0.0
    ) -> None:
        self.reply, self.yes = reply, yes
        self.requests: list[Request] = []
        self.usage = Usage()

    @classmethod
    def in_turn(cls, *answers: str) -> "FakeLlm":
        """One that gives the answers in turn, over and over."""
        fake = cls()
        fake.reply = lambda _: answers[(len(fake.requests) - 1) % len(answers)]
        return fake

    @property
    def texts(self) -> list[str]:
        """The texts of all requests so far."""
        return [request.text for request in self.requests]

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        replies = []
        for request in requests:
            self.requests.append(request)
            replies.append(Reply(self.reply(request), PROMPT_TOKENS, OUTPUT_TOKENS))
        return replies

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        return self.chat([Request((), prompt) for prompt in prompts])

    def yes_probability(self, requests: Sequence[Request]) -> list[float]:
        self.requests += requests
        return [self.yes(request) for request in requests]
