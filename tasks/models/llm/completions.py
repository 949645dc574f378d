"""What a model server answers: a chat completion, a refusal of this one request, or a fault that may pass.

Pure functions of status and content; a server's word is not trusted: every field is checked before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

BUSY = (429, 503)  # HTTP statuses of a busy server
LATER = (408, 409, 425, 429)  # 4xx that say: try again
# 4xx that are about the request's content: too large, an image that cannot be read, a prompt that is too long
ABOUT_CONTENT = (400, 406, 411, 413, 414, 415, 422, 431, 451)
EXCERPT_CHARS = 300  # of an answer, in errors and dropped rows


class Answer(NamedTuple):
    """One HTTP answer: status and content."""

    status: int
    content: bytes

    @property
    def excerpt(self) -> str:
        """The beginning of the content on one line, for errors."""
        return " ".join(self.content[: 4 * EXCERPT_CHARS].decode(errors="replace").split())[:EXCERPT_CHARS]


class RetryableError(Exception):
    """A request failed in a way that another try may mend.

    Attributes:
        is_broken: the server answered, but no chat completion.
    """

    def __init__(self, message: str, *, is_broken: bool = False) -> None:
        super().__init__(message)
        self.is_broken = is_broken


class PersistentFault(Exception):
    """A request whose every try a server answered with a fault.

    Attributes:
        fault: tries and the last fault.
    """

    def __init__(self, message: str, fault: str) -> None:
        super().__init__(message)
        self.fault = fault


class RefusedError(Exception):
    """The server refuses this request; another one may be fine."""


class RejectedError(Exception):
    """The server refuses whatever this client sends: a wrong key, path or model."""


def read_completion(answer: Answer) -> dict[str, Any]:
    """The chat completion in an answer: text, is_cut, prompt_tokens, output_tokens, model, and likely: [token,
    log-probability] rows of the first token or None.

    Raises:
        RetryableError: the server is busy or failing, or the answer is no chat completion.
        RefusedError: the server refuses this request.
        RejectedError: the server refuses this client.
    """
    require_success(answer.status, answer.excerpt)
    try:
        completion = json.loads(answer.content)
    except (ValueError, RecursionError):  # also invalid UTF-8
        raise _broken("no JSON", answer) from None
    if not isinstance(completion, dict):
        raise _broken("no JSON object", answer)
    if not completion.get("choices"):
        require_success(_status_in(completion), answer.excerpt)
        raise _broken("no choices", answer)
    try:
        return _parse(completion)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        raise _broken("no chat completion", answer) from None


def require_success(status: int, words: str) -> None:
    """Nothing for 200; else as of `read_completion`."""
    if status == 200:
        return
    message = f"{status} {words}"
    if status in LATER or status >= 500:
        raise RetryableError(message)
    if status in ABOUT_CONTENT:
        raise RefusedError(message)
    raise RejectedError(message)


def _broken(what: str, answer: Answer) -> RetryableError:
    return RetryableError(f"not a chat completion ({what}): {answer.excerpt[:200]}", is_broken=True)


def _status_in(completion: Mapping[str, Any]) -> int:
    """The HTTP status that an error in a 200's body names; 200 without one."""
    error = completion.get("error", completion if completion.get("object") == "error" else None)
    if error is None:
        return 200
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _parse(completion: Mapping[str, Any]) -> dict[str, Any]:
    choice = completion["choices"][0]
    message, usage = choice["message"], completion.get("usage") or {}
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise RefusedError("the reply was stopped by the server's content filter")
    model = completion.get("model")
    return {
        "text": _text(message).strip(),
        "is_cut": reason == "length",
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "output_tokens": _count(usage.get("completion_tokens")),
        "likely": _likely(choice.get("logprobs")),
        "model": model if isinstance(model, str) else None,
    }


def _text(message: Mapping[str, Any]) -> str:
    """The words of a message; lone surrogates, which no file can hold, as replacement characters."""
    content = message.get("content")
    if isinstance(content, list):  # parts, as some servers answer
        content = "".join(part["text"] for part in content if part.get("type", "text") == "text")
    if content is None:
        content = message.get("refusal") or ""
    if not isinstance(content, str):
        raise TypeError("content is no text")
    return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(value: Any) -> int:
    return max(0, int(value or 0))


def _likely(logprobs: Any) -> list[list[Any]] | None:
    content = (logprobs or {}).get("content") or [{}]
    top = content[0].get("top_logprobs") or []
    rows = [(str(t["token"]), float(t["logprob"])) for t in top]
    return [[token, logprob] for token, logprob in rows if not math.isnan(logprob) and logprob <= 0.01] or None
