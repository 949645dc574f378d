"""Resumable chunks: parts add up to the whole, files that exist are skipped, a token budget stops between chunks."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tasks.records import StageReport
from tasks.store import Store
from tasks.store.chunks import Chunk, ChunkSpec, TokenBudget, file_chunks, iter_chunks, make_missing_chunks

BATCH = "2026.01.04"


@given(count=st.integers(0, 200), chunk=st.integers(1, 40), parts=st.integers(1, 7))
def test_the_parts_together_are_the_whole(count: int, chunk: int, parts: int):
    whole = list(iter_chunks(count, chunk, None))
    together = sorted((c for i in range(parts) for c in iter_chunks(count, chunk, (i + 1, parts))), key=lambda c: c[0])
    assert together == whole
    assert [i for _, s in whole for i in range(count)[s]] == list(range(count))


def caption_rows(made: list[slice]) -> Any:
    """A `make` of table `captions` that drops every third row, and notes the chunks that it is called for."""

    def make(chunk: Chunk) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        made.append(chunk.rows)
        numbers = range(chunk.rows.start, chunk.rows.stop)
        captions = [{"image_id": str(n), "caption": "x", "output_tokens": 5} for n in numbers if n % 3]
        dropped = [
            {"stage": "recaption", "batch": BATCH, "key": str(n), "reason": "empty_reply", "detail": ""}
            for n in numbers
            if not n % 3
        ]
        return captions, dropped

    return make


def run(store: Store, made: list[slice], budget: TokenBudget | None = None) -> tuple[StageReport, Any]:
    report = StageReport("recaption")
    spec = ChunkSpec("captions", BATCH, list(iter_chunks(10, 4, None)))
    return report, make_missing_chunks(store, report, spec, caption_rows(made), budget)


def test_a_rerun_makes_only_the_chunk_whose_file_is_missing(tmp_path: Path):
    store, made = Store(tmp_path), []
    first, (captions, dropped) = run(store, made)
    assert (first.read, first.new, first.done, first.written, first.dropped) == (10, 10, 10, 6, {"empty_reply": 4})
    assert captions["image_id"] == ["1", "2", "4", "5", "7", "8"] and dropped["key"] == ["0", "3", "6", "9"]
    store.table_path("captions", BATCH, 1).unlink()
    made.clear()
    again, tables = run(store, made)
    assert made == [slice(4, 8)] and tables == (captions, dropped)
    assert (again.done, again.written, again.dropped) == (10, 3, {"empty_reply": 4})


def test_no_chunk_is_begun_once_the_chunks_before_it_have_used_the_budget(tmp_path: Path):
    store, made = Store(tmp_path), []

    def tokens(captions: dict[str, list[Any]], dropped: dict[str, list[Any]]) -> int:
        return sum(captions["output_tokens"])

    report, (captions, _) = run(store, made, TokenBudget(11, tokens))  # the first chunk takes 10 tokens
    assert (
        made == [slice(0, 4), slice(4, 8)] and (report.new, report.done) == (10, 8) and len(captions["image_id"]) == 5
    )
    made.clear()
    report, _ = run(store, made, TokenBudget(26, tokens))
    assert made == [slice(8, 10)] and report.done == 10


def test_chunks_that_follow_the_files_of_another_stage_need_the_files_of_their_own_part_alone(tmp_path: Path):
    store = Store(tmp_path)
    for number, count in {0: 3, 1: 0, 2: 5, 4: 1}.items():  # 3 is missing: another part has not made it yet
        rows = [{"image_id": str(n)} for n in range(count)]
        store.write(store.table_path("captions", BATCH, number), rows, "captions")
    store.write(store.table_path("captions", BATCH), [], "captions")  # a file without chunks, of an earlier release
    store.write(store.table_path("captions", "2026.01.05", 0), [], "captions")
    chunks = file_chunks(store, "captions", BATCH, None)
    assert [(c.number, c.rows.stop) for c in chunks] == [(0, 3), (1, 0), (2, 5), (4, 1)]
    assert file_chunks(store, "captions", BATCH, (2, 2)) == [Chunk(1, slice(0, 0))]
    parts = [file_chunks(store, "captions", BATCH, (i, 3)) for i in (1, 2, 3)]
    assert sorted(c.number for part in parts for c in part) == [0, 1, 2, 4]
