"""A captioner, writer and judge in one that answers by rule and keeps its requests."""

from collections.abc import Callable, Sequence

from tasks.models.llm.requests import Refusal, Reply, Request
from tasks.usage import Usage

PROMPT_TOKENS, OUTPUT_TOKENS = 10, 2  # of every reply


class FakeLlm:
    """`reply` answers a request in words (or with a whole Reply), `yes` with P(yes) or a refusal."""

    name, revision, engine, sampling, max_new_tokens = "fake", "0123456789ab", "fake 1", "{}", 80

    def __init__(
        self,
        reply: Callable[[Request], str | Reply] = lambda _: "",
        yes: Callable[[Request], float | Refusal] = lambda _: 0.0,
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
            answer = self.reply(request)
            whole = answer if isinstance(answer, Reply) else Reply(answer, PROMPT_TOKENS, OUTPUT_TOKENS)
            replies.append(whole)
        return replies

    def write(self, prompts: Sequence[str], *, max_tokens: int | None = None) -> list[Reply]:
        return self.chat([Request((), prompt, None, max_tokens) for prompt in prompts])

    def yes_probability(self, requests: Sequence[Request]) -> list[float | Refusal]:
        self.requests += requests
        return [self.yes(request) for request in requests]
