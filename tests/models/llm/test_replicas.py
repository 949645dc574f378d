"""Which server gets the next request: the one with the fewest in flight; one that fails is left out for a while."""

import contextlib
import threading
from pathlib import Path

import pytest

from tasks.errors import ConfigError, TransientError
from tasks.models.llm.replicas import ReplicaPool
from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.requests import Request
from tests.support.served_model import FakeServer, fake_server, served_model


class Clock:
    """Monotonic time that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def taken(pool: ReplicaPool, count: int) -> tuple[list[str], contextlib.ExitStack]:
    """The servers of `count` requests that are in flight together."""
    stack = contextlib.ExitStack()
    return [stack.enter_context(pool.slot()).url for _ in range(count)], stack


def test_the_server_with_the_fewest_requests_gets_the_next_one():
    pool = ReplicaPool(["a", "b"], 3, Clock())
    urls, stack = taken(pool, 6)
    assert urls == ["a", "b"] * 3
    with stack:
        pass
    assert [r.in_flight for r in pool.replicas] == [0, 0]


def test_a_server_that_fails_is_left_out_then_tried_with_one_request_and_taken_back():
    clock = Clock()
    pool = ReplicaPool(["a", "b"], 3, clock)
    pool.on_fault(pool.replicas[0])
    urls, stack = taken(pool, 3)
    assert urls == ["b"] * 3
    clock.now += 0.6
    with stack, pool.slot() as replica:
        assert replica.url == "a"  # one request to see whether it is back, and no second one
        assert pool._choose() is None
        pool.on_success(replica)
        assert replica.limit == 3
    pool.on_fault(pool.replicas[0])
    pool.on_fault(pool.replicas[0])
    assert pool.replicas[0].down_until == clock.now + 1.0  # the time doubles


def test_where_all_are_left_out_the_first_to_come_back_is_tried():
    clock = Clock()
    pool = ReplicaPool(["a", "b"], 2, clock)
    pool.on_fault(pool.replicas[0])
    clock.now += 0.1
    pool.on_fault(pool.replicas[1])
    with pool.slot() as replica:
        assert replica.url == "a"


def test_a_waiting_request_goes_on_when_another_ends():
    pool = ReplicaPool(["a"], 1)
    urls: list[str] = []

    def request() -> None:
        with pool.slot() as replica:
            urls.append(replica.url)

    with pool.slot():
        waiting = threading.Thread(target=request)
        waiting.start()
        assert urls == []
    waiting.join(20)
    assert urls == ["a"]


def test_all_servers_down_is_waited_for_within_the_limit(server: FakeServer):
    waits: list[float] = []
    model = served_model("http://127.0.0.1:9/v1,http://127.0.0.1:10/v1", outage_s=200.0)
    model._sleep = waits.append
    with pytest.raises(TransientError, match=r"127.0.0.1:10/v1: no reply for 'tiny' after \d\d tries"):
        model.chat([Request((), "style: a")])
    assert 200 <= sum(waits) <= 240

    def start(delay_s: float) -> None:
        waits.append(delay_s)
        if len(waits) == 12:
            server()

    waits.clear()
    late = served_model(f"http://127.0.0.1:{server.port}/v1", outage_s=600.0)
    late._sleep = start
    assert late.chat([Request((), "style: a")])[0].text and len(waits) == 12


def test_a_server_that_comes_back_with_other_weights_between_two_calls_is_noticed(server: FakeServer):
    model = served_model(server(root="/weights/a"))
    assert model.chat([Request((), "style: a")])[0].text
    server(root="/weights/b")
    with pytest.raises(ConfigError, match="is /weights/b there now and was /weights/a"):
        model.chat([Request((), "style: b")])
    assert len(server.paid()) == 1


def test_other_weights_are_noticed_by_the_next_process_and_their_replies_are_not_taken_from_the_cache(
    tmp_path: Path, server: FakeServer
):
    folder, cache = tmp_path / "served", RequestCache(tmp_path / "cache")
    first = served_model(server(root="/weights/a"), identity_folder=folder, cache=cache)
    first.chat([Request((), "style: a")])
    with pytest.raises(ConfigError, match=r"was /weights/a; one run has one model.*remove .*served"):
        served_model(server(root="/weights/b"), identity_folder=folder, cache=cache).chat([Request((), "style: a")])
    other_run = served_model(server(root="/weights/b"), identity_folder=tmp_path / "other", cache=cache)
    other_run.chat([Request((), "style: a")])
    assert other_run.usage.cached == 0 and len(server.paid()) == 2
    again = served_model(server(root="/weights/a"), identity_folder=folder, cache=cache)
    again.chat([Request((), "style: a")])
    assert again.usage.cached == 1 and len(server.paid()) == 2


def test_two_servers_share_the_work_and_one_may_die_in_the_middle(tmp_path: Path, server: FakeServer):
    requests = [Request((), f"style: {n:02d}") for n in range(30)]
    with fake_server(tmp_path / "other") as other:
        model = served_model(f"{server()},{other(die=5)}", in_flight=2, outage_s=60.0)
        replies = model.chat(requests)
        assert [r.text.rpartition(" ")[2] for r in replies] == [f"{n:02d}" for n in range(30)]
        # an answer that the dying server had made, and not yet sent, is asked for again
        assert len(other.paid()) == 4 and 26 <= len(server.paid()) <= 27
