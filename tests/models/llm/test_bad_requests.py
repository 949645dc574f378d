"""One bad request gets a refusal, the others their replies; what fails for all requests is an error at once."""

from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ConfigError, TransientError
from tasks.models.llm.completions import Answer, RefusedError, RejectedError, RetryableError, read_completion
from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.requests import Refusal, Reply, Request
from tests.support.fake_server import BAD_ANSWERS
from tests.support.served_model import FakeServer, served_model

REQUESTS = [Request((), f"style: {n:02d}") for n in range(9)]


@pytest.mark.parametrize(
    ("fault", "number"), [(400, "00"), (413, "05"), (500, "00"), ("no choices", "05"), ("gzip", "05"), ("deep", "05")]
)
def test_one_bad_request_gets_a_refusal_and_all_others_their_reply(
    fault: int | str, number: str, tmp_path: Path, server: FakeServer
):
    expected = served_model(server()).chat(REQUESTS)
    server.forget()
    model = served_model(server(bad=[f"style: {number}", fault]), in_flight=2, cache=RequestCache(tmp_path / "cache"))
    replies = model.chat(REQUESTS)
    refusal = replies[int(number)].refusal
    assert refusal is not None and refusal.reason == "request_refused" and refusal.detail
    assert [r for n, r in enumerate(replies) if n != int(number)] == [
        r for n, r in enumerate(expected) if n != int(number)
    ]
    paid = len(server.paid())
    again = model.chat(REQUESTS)  # the refusal is asked again, not cached; a plain request may show that it is not us
    assert [r.text for r in again] == [r.text for r in replies] and len(server.paid()) <= paid + 1


def test_a_refused_question_of_the_judge_is_a_refusal_too(server: FakeServer):
    url = server(bad=["style: 03", 400])
    yes = served_model(url).yes_probability(REQUESTS)
    assert isinstance(yes[3], Refusal) and "aspect ratio" in yes[3].detail
    assert all(isinstance(p, float) for n, p in enumerate(yes) if n != 3)


@pytest.mark.parametrize("fault", [400, 401, 404])
def test_a_server_that_refuses_every_request_is_an_error_at_once(fault: int, server: FakeServer):
    with pytest.raises(ConfigError, match=f"{fault} .*aspect ratio"):
        served_model(server(bad=["model", fault])).chat(REQUESTS)
    assert server.paid() == []


@pytest.mark.parametrize("fault", [500, "no json"])
def test_a_server_that_answers_nothing_well_is_tried_again_later(fault: Any, server: FakeServer):
    with pytest.raises(TransientError, match="no reply for 'tiny'"):
        served_model(server(bad=["model", fault]), tries=3).chat(REQUESTS)


def test_a_reply_that_ends_at_the_longest_length_is_cut(server: FakeServer):
    model = served_model(server(cut=9))
    short, long = model.chat([Request((), "style: a"), Request((), "style: b", max_tokens=18)])
    assert (short.is_cut, long.is_cut) == (True, False)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b'{"choices": [{"message": {"content": " a "}}]}', "a"),
        (b'{"choices": [{"message": {"content": null, "refusal": "I cannot"}}]}', "I cannot"),
        (b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "x"}]}}]}', "a"),
        (b'{"choices": [{"message": {"content": "a \\ud800 b"}}], "usage": null}', "a \ufffd b"),
        (b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": -4}, "model": 7}', "a"),
    ],
)
def test_odd_but_whole_answers_are_read(answer: bytes, expected: str):
    completion = read_completion(Answer(200, answer))
    assert completion["text"] == expected and completion["text"].encode() and completion["prompt_tokens"] == 0


@pytest.mark.parametrize(
    ("status", "content", "error"),
    [
        (401, b"", RejectedError),
        (302, b"", RejectedError),
        (408, b"", RetryableError),
        (200, b'{"error": "overloaded"}', RetryableError),
        (200, b'{"error": {"code": 429}}', RetryableError),
        (200, b'{"error": {"code": "401"}}', RejectedError),
        (200, b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 1e999}}', RetryableError),
        (200, b"null", RetryableError),
        *((status, b"", RefusedError) for status in (400, 413, 415, 422, 431, 451)),
        *((status, b"", RetryableError) for status in (429, 500, 502, 503, 504)),
        *((200, content, (RetryableError, RefusedError)) for content in BAD_ANSWERS.values()),
    ],
)
def test_every_answer_is_a_completion_a_refusal_or_a_fault(status: int, content: bytes, error: Any):
    with pytest.raises(error):
        read_completion(Answer(status, content))


def test_a_key_is_sent_as_bearer_and_never_shown(server: FakeServer):
    url = server(key="sk-secret")
    assert served_model(url, api_key="sk-secret").chat(REQUESTS[:1])[0] != Reply("", 0, 0)
    with pytest.raises(ConfigError, match="MEGAPAIRS_MODEL_API_KEY") as caught:
        served_model(url, api_key="sk-wrong").chat(REQUESTS[:1])
    assert "sk-wrong" not in str(caught.value) and "***" in str(caught.value)
    assert "sk-wrong" not in repr(served_model(url, api_key="sk-wrong").__dict__.get("cache"))
