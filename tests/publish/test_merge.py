"""Chunks become one file when a version is made: the same rows, whatever the chunks were and wherever it was killed."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tasks.publish import merge
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.chunks import ChunkSpec, file_chunks, iter_chunks, make_missing_chunks

BATCH, EARLIER = "2026.01.11", "2026.01.04"


class Killed(BaseException):
    """In place of a SIGKILL."""


def write_chunks(root: Path, chunk_rows: int, rows: int = 20) -> Store:
    """A batch of captions in chunks, and two chunks of an earlier batch."""
    store = Store(root)
    for batch, count in ((EARLIER, 2), (BATCH, rows)):
        for number, start in enumerate(range(0, count, 1 if batch == EARLIER else chunk_rows)):
            ids = range(start, min(start + (1 if batch == EARLIER else chunk_rows), count))
            found = [{"image_id": f"{batch} {n:03d}", "caption": f"text {n}"} for n in ids]
            store.write(store.table_path("captions", batch, number), found, "captions")
            dropped = [{"stage": "recaption", "batch": batch, "key": f"{n}", "reason": "r", "detail": ""} for n in ids]
            store.write(store.dropped_path("recaption", batch, number), dropped, "dropped")
    return store


def files_of(store: Store) -> dict[str, bytes]:
    return {
        p.relative_to(store.root).as_posix(): p.read_bytes() for p in sorted((store.root / "data").rglob("*.parquet"))
    }


def test_one_file_a_table_and_the_same_bytes_for_any_chunks(tmp_path: Path):
    results = []
    for chunk_rows in (3, 7):
        store = write_chunks(tmp_path / str(chunk_rows), chunk_rows)
        rows, earlier = store.read_table("captions").to_pylist(), store.read_table("captions", batch=EARLIER)
        assert merge.merge_chunks(store, BATCH) > 0 and merge.merge_chunks(store, BATCH) == 0
        assert [p.name for p in store.batch_files("captions", BATCH)] == [f"{BATCH}-00000.parquet"]
        assert store.read_table("captions").to_pylist() == rows
        assert (
            len(store.batch_files("captions", EARLIER)) == 2 and store.read_table("captions", batch=EARLIER) == earlier
        )
        results.append(files_of(store))
    assert results[0] == results[1]


def test_files_stay_below_the_size(tmp_path: Path):
    store = write_chunks(tmp_path, 2)
    size = store.table_path("captions", BATCH, 0).stat().st_size
    rows = store.read_table("captions").to_pylist()
    merge.merge_chunks(store, BATCH, limit=3 * size + 50)
    assert 3 <= len(store.batch_files("captions", BATCH)) <= 5
    assert store.read_table("captions").to_pylist() == rows
    assert merge.group_by_size([5, 5, 5, 30, 1, 1], 10) == [2, 1, 1, 2]


def test_killed_anywhere_it_goes_on_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = write_chunks(tmp_path / "whole", 6)
    merge.merge_chunks(whole, BATCH)
    for moment in itertools.count():
        store, steps = write_chunks(tmp_path / f"{moment}", 6), itertools.count()

        def step(original: Any, steps: Any = steps, moment: int = moment) -> Any:
            def call(*arguments: Any, **more: Any) -> Any:
                if next(steps) == moment:
                    raise Killed
                return original(*arguments, **more)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", step(os.replace))
            patch.setattr(Path, "unlink", step(Path.unlink))
            try:
                merge.merge_chunks(store, BATCH)
                break
            except Killed:
                pass
        merge.merge_chunks(store, BATCH)
        assert files_of(store) == files_of(whole), moment
    assert moment > 8


def test_a_stage_that_is_started_again_finds_its_work_done(tmp_path: Path):
    store = write_chunks(tmp_path, 5)
    merge.merge_chunks(store, BATCH)
    before, report = files_of(store), StageReport("recaption")
    spec = ChunkSpec("captions", BATCH, list(iter_chunks(20, 5, (2, 2))))
    captions, dropped = make_missing_chunks(store, report, spec, lambda _: pytest.fail("it asks a model again"))
    assert len(captions["image_id"]) == len(dropped["key"]) == 20 and report.done == report.new > 0
    assert files_of(store) == before and json.loads(report.to_json())["notes"]


def test_the_next_batch_in_the_same_folder_is_worked_on(tmp_path: Path):
    store, after = write_chunks(tmp_path, 5), "2026.01.18"
    merge.merge_chunks(store, BATCH)
    spec, report = ChunkSpec("captions", after, list(iter_chunks(4, 2, None))), StageReport("recaption")
    made = make_missing_chunks(
        store, report, spec, lambda chunk: ([{"image_id": str(chunk.number), "caption": "text"}], [])
    )
    assert made[0]["image_id"] == ["0", "1"] and len(store.batch_files("captions", after)) == 2
    assert merge.merge_chunks(store, after) > 0


@pytest.mark.parametrize(
    ("rows", "earlier", "files"),
    [(20, 0, 1), (60, 0, 3), (480, 0, 16), (480, 13, 3), (480, 16, 1)],
    ids=["few rows", "a file for each twenty", "at most sixteen", "as many as are missing", "enough are there"],
)
def test_many_triplets_are_left_in_files_for_many_workers(tmp_path: Path, rows: int, earlier: int, files: int):
    store = Store(tmp_path)
    for number in range(earlier):
        store.write(store.table_path("triplets", EARLIER, number), [], "triplets")
    for number in range(rows // 10):
        found = [{"triplet_id": f"{number:04d} {n}"} for n in range(10)]
        store.write(store.table_path("triplets", BATCH, number), found, "triplets")
    merge.merge_chunks(store, BATCH, loader=merge.LoaderFiles(files=16, rows_min=20))
    counts = [store.count_rows(path, "triplets") for path in store.batch_files("triplets", BATCH)]
    assert len(counts) == files and sum(counts) == rows and max(counts) - min(counts) <= 10
    ids = store.read_table("triplets", ["triplet_id"]).column(0).to_pylist()
    assert ids == sorted(ids) and len(store.batch_files("triplets", EARLIER)) == earlier


def test_a_stage_whose_chunks_all_stayed_counts_them_all_when_it_is_started_again(tmp_path: Path):
    """Judge follows the files of captioning, which are one by then; its own are as many as loaders want."""
    store = Store(tmp_path)
    for number in range(4):
        pairs = [{"pair_id": f"{number} {n}"} for n in range(20)]
        store.write(store.table_path("captioned", BATCH, number), pairs, "captioned")
        triplets = [{**pair, "triplet_id": pair["pair_id"]} for pair in pairs[:15]]
        store.write(store.table_path("triplets", BATCH, number), triplets, "triplets")
        dropped = [{"stage": "judge", "batch": BATCH, "key": p["pair_id"], "reason": "r"} for p in pairs[15:]]
        store.write(store.dropped_path("judge", BATCH, number), dropped, "dropped")
    merge.merge_chunks(store, BATCH, loader=merge.LoaderFiles(files=16, rows_min=10))
    assert [len(store.batch_files(table, BATCH)) for table in ("captioned", "triplets")] == [1, 4]
    before, report = files_of(store), StageReport("judge")
    spec = ChunkSpec("triplets", BATCH, file_chunks(store, "captioned", BATCH, None))
    judged, dropped = make_missing_chunks(store, report, spec, lambda _: pytest.fail("it asks a model again"))
    assert (len(judged["triplet_id"]), len(dropped["key"]), report.new, report.dropped) == (60, 20, 80, {"r": 20})
    assert files_of(store) == before and merge.merge_chunks(store, BATCH) == 0


def test_empty_chunks_and_one_large_one_are_shared_out_in_order():
    assert merge.group_by_rows([0, 0, 0], 4) == [3]
    assert merge.group_by_rows([90, 1, 1, 0, 8, 0], 4) == [1, 5]
    assert merge.group_by_rows([5, 5, 5, 5, 0, 0], 2) == [2, 4]
