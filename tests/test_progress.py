"""A stage's progress: lines with rate and time left, and the last state in a file."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks import progress
from tasks.progress import Progress, State, kept_in, read_state
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.chunks import ChunkSpec, iter_chunks, make_missing_chunks


class Clock:
    """A clock that tests move."""

    now = 100.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def test_a_line_every_few_seconds_says_rate_and_time_left(clock: Clock, caplog: pytest.LogCaptureFixture):
    counter = Progress("caption", 10_000, "pairs")
    counter.skip(4_000)
    with caplog.at_level("INFO", logger="tasks.progress"):
        for _ in range(40):
            clock.now += 1
            counter.advance(50)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 8  # every five seconds
    assert lines[0] == "caption: 4,250 of 10,000 (42%) pairs, 50.0/s, 2 min left"
    assert lines[-1] == "caption: 6,000 of 10,000 (60%) pairs, 50.0/s, 80 s left"


@pytest.mark.parametrize(("per_s", "text"), [(1200.0, "1,200.0/s"), (0.5, "30.0/min"), (1 / 120, "30.0/h")])
def test_a_rate_is_said_in_a_unit_that_fits(per_s: float, text: str):
    assert str(State("train", "steps", 1, None, per_s, None, "")) == f"train: 1 steps, {text}"


@pytest.mark.parametrize(("left_s", "text"), [(5.0, "5 s"), (600.0, "10 min"), (7200.0, "2.0 h")])
def test_time_left_is_said_as_a_person_does(left_s: float, text: str):
    assert str(State("x", "rows", 1, 2, 1.0, left_s, "")).endswith(f"{text} left")


def test_the_last_state_is_kept_and_read(clock: Clock, tmp_path: Path):
    path = tmp_path / "progress" / "embed@semantic.json"
    with kept_in(path):
        counter = Progress("embed semantic", 10, "images", is_logged=False)
        clock.now += 6
        counter.advance(3)
        state = read_state(path)
        assert state is not None and (state.done, state.total, state.rate, state.left_s) == (3, 10, 0.5, 14.0)
        counter.advance(7)
        counter.finish()
    done = read_state(path)
    assert done is not None and (done.done, done.left_s) == (10, 0.0)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [None, "", "[]", '{"stage": "x"}'])
def test_a_file_that_is_none_is_no_state(content: str | None, tmp_path: Path):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert read_state(path) is None


def test_chunks_of_an_earlier_try_count_as_done_but_not_for_the_rate(tmp_path: Path):
    store, path = Store(tmp_path), tmp_path / "state.json"

    def run() -> State | None:
        spec = ChunkSpec("captions", "2026.01.04", list(iter_chunks(6, 2, None)))
        with kept_in(path):
            make_missing_chunks(store, StageReport("recaption"), spec, lambda chunk: ([], []))
        return read_state(path)

    first = run()
    assert first is not None and (first.done, first.total) == (6, 6) and first.rate is not None
    store.table_path("captions", "2026.01.04", 1).unlink()
    second = run()
    assert second is not None and second.done == 6
    third = run()
    assert third is not None and third.done == 6 and third.rate is None, "nothing was left to do"
