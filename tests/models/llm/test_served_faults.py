"""The served engine with a server that fails, is busy, hangs or changes its model: equal replies, or an error."""

from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ConfigError, TransientError
from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.requests import Request
from tests.support.served_model import FakeServer, served_model


@pytest.mark.parametrize("fault", ["500", "429", "half", "hang"])
def test_replies_are_equal_whatever_fails_now_and_then(fault: str, tmp_path: Path, server: FakeServer):
    requests = [Request((), f"style: {n}") for n in range(30 if fault != "hang" else 8)]

    def replies(url: str) -> list[Any]:
        return served_model(url, in_flight=4, timeout_s=2.0 if fault == "hang" else 60.0).chat(requests)

    expected = replies(server())
    assert replies(server(fault=fault, every=4)) == expected


def test_in_flight_is_reached_and_never_exceeded(tmp_path: Path, server: FakeServer):
    model = served_model(server(together=5), in_flight=5, timeout_s=120.0)
    assert len(model.chat([Request((), f"style: {n}") for n in range(25)])) == 25
    assert server.most_in_flight() == 5


def test_a_busy_server_gets_fewer_requests_at_once_and_more_as_it_recovers(tmp_path: Path, server: FakeServer):
    url = server(together=3, busy=2)
    model = served_model(url, in_flight=8, timeout_s=120.0, tries=40)
    requests = [Request((), f"style: {n}") for n in range(24)]
    replies = model.chat(requests)
    limiter = model.replicas[0]
    assert [r.text.rpartition(" ")[2] for r in replies] == [str(n) for n in range(24)] and len(server.paid()) == 24
    assert limiter.limit < 8  # halved at each 429
    server()
    model.chat([Request((), f"style: {n} more") for n in range(60)])
    assert limiter.limit == 8


def test_a_server_that_hangs_is_an_error_after_the_deadline(server: FakeServer):
    url = server(fault="hang", every=1)
    model = served_model(url, in_flight=2, timeout_s=0.3, tries=2)
    with pytest.raises(TransientError, match="after 2 tries"):
        model.chat([Request((), "style: short")])


def test_a_server_that_was_restarted_with_another_model_is_refused(tmp_path: Path, server: FakeServer):
    model = served_model(server(root="/weights/a"), in_flight=2, timeout_s=60.0)
    assert len(model.chat([Request((), f"style: {n}") for n in range(4)])) == 4
    server(root="/weights/b", fault="500", every=1)
    with pytest.raises(ConfigError, match=r"is /weights/b there now and was /weights/a"):
        model.chat([Request((), "style: more")])
    with pytest.raises(ConfigError, match=r"serves \['other'\], not 'tiny'"):
        served_model(server(model="other")).chat([Request((), "style: more")])
    with pytest.raises(ConfigError, match="answers as 'another'"):
        served_model(server(fault="alien", every=1)).chat([Request((), "style: more")])


def test_replicas_share_the_work_and_one_may_be_down(tmp_path: Path, server: FakeServer):
    url = server()
    model = served_model(f"http://127.0.0.1:9/v1,{url}", in_flight=4, cache=RequestCache(tmp_path / "cache"))
    replies = model.chat([Request((), f"style: {n}") for n in range(12)])
    assert [r.text.rpartition(" ")[2] for r in replies] == [str(n) for n in range(12)] and len(server.paid()) == 12
    assert model.chat([Request((), f"style: {n}") for n in range(12)]) == replies and len(server.paid()) == 12
    assert (model.usage.requests, model.usage.cached, model.usage.output_tokens) == (24, 12, 84)
