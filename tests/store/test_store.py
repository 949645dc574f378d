"""The store: whole files or none, equal rows give equal bytes, parts do not matter."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError
from tasks.names import stable_id
from tasks.records import StageReport, schemas
from tasks.store import Store, tables
from tasks.store import vectors as vectors_module
from tasks.store.tables import TableWriter, to_parquet


def test_equal_rows_give_equal_bytes_and_are_read_back(tmp_path):
    same = {"caption_source": "vlm@1", "prompt_tokens": 70, "output_tokens": 9, "prompt_sha256": "c" * 64}
    rows = [{"image_id": "a", "caption": "a hat", **same}, {"image_id": "b", "caption": "<b>\n", **same}]
    one, two = Store(tmp_path / "1"), Store(tmp_path / "2")
    for store in (one, two):
        assert store.write(store.table_path("captions", "2026.01.01"), rows, "captions") == 2
    assert one.table_files("captions")[0].read_bytes() == two.table_files("captions")[0].read_bytes()
    assert one.read_table("captions").to_pylist() == rows


def test_a_batch_is_distinct_from_one_whose_name_it_begins(tmp_path):
    store = Store(tmp_path)
    for batch in ("2026.01.01", "2026.01.01.2"):
        store.write(
            store.table_path("captions", batch, 0),
            [{"image_id": batch, "caption": "x", "caption_source": "s"}],
            "captions",
        )
    assert store.read_table("captions", batch="2026.01.01").column("image_id").to_pylist() == ["2026.01.01"]


def test_mixed_model_revisions_are_refused(tmp_path):
    store = Store(tmp_path)
    store.write_embeddings("semantic", "b-00000.tar", "r1", ["a"], np.ones((1, 4)))
    store.write_embeddings("semantic", "b-00001.tar", "r2", ["b"], np.ones((1, 4)))
    with pytest.raises(DataError, match="different model revisions"):
        store.read_embeddings("semantic")


def test_the_error_names_a_broken_table(tmp_path):
    store = Store(tmp_path)
    store.write_bytes(store.table_path("pairs", "2026.01.01"), b"not parquet")
    with pytest.raises(DataError, match="2026.01.01.parquet: not a readable 'pairs' table"):
        store.read_table("pairs")


def test_parts_add_up_in_a_merged_report():
    a = StageReport("judge", "1/2", read=3, done=3, dropped={"ambiguous": 1}, figures={"yield": 0.5})
    b = StageReport("judge", "2/2", read=1, done=1, dropped={"ambiguous": 2}, figures={"yield": 1.0})
    merged = StageReport.merged("judge", [a, b])
    assert (merged.read, merged.dropped, merged.figures) == (4, {"ambiguous": 3}, {"yield": 0.625})
    assert StageReport.from_json(merged.to_json()) == merged


def test_work_done_again_in_another_number_of_parts_is_counted_once(tmp_path):
    store = Store(tmp_path)

    def done(stage: str) -> int:
        return store.read_reports()[stage].done

    for part in ("semantic@1/2", "semantic@2/2", "pattern@1/2"):
        store.write_report(StageReport("embed", part=part, done=10))
    assert done("embed") == 30
    for part in ("semantic@1/3", "semantic@2/3", "semantic@3/3"):
        store.write_report(StageReport("embed", part=part, done=7))
    assert done("embed") == 31, "of another encoder nothing goes"
    store.write_report(StageReport("embed", part="semantic", done=20))
    assert done("embed") == 30
    store.write_report(StageReport("embed", part="semantic@1/1", done=20))
    assert done("embed") == 30
    store.write_report(StageReport("mine", part="semantic", done=20))
    store.write_report(StageReport("mine", part="semantic@1/2"))
    assert done("mine") == 20, "a part that is merged counts nothing"


def test_stable_ids_depend_on_where_the_parts_are_separated():
    assert stable_id("ab", "c") != stable_id("a", "bc")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_vectors_are_gathered_from_the_shards_in_their_order(tmp_path_factory, seed: int, sizes: list[int]):
    store, rng = Store(tmp_path_factory.mktemp("store")), np.random.default_rng(seed)
    ids = [f"{i:02d}" for i in rng.permutation(sum(sizes))]
    vectors = rng.normal(size=(len(ids), 3)).astype(np.float16)
    for n, (start, size) in enumerate(zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False)):
        store.write_embeddings(
            "semantic", f"b-{n:05d}.tar", "r1", ids[start : start + size], vectors[start : start + size]
        )
    found, rows, revision = store.read_embeddings("semantic")
    assert found == ids and revision == ("r1" if ids else "") and (not ids or np.array_equal(rows, vectors))
    corpus = store.read_corpus("semantic")
    assert corpus.ids.to_pylist() == ids and [s.stop - s.start for s in corpus.shards.values()] == [
        n for n in sizes if n
    ]
    wanted_rows = rng.integers(0, len(ids), 9) if ids else np.zeros(0, np.int64)
    assert not ids or np.array_equal(corpus.rows.take(wanted_rows), vectors[wanted_rows])
    assert not ids or np.array_equal(corpus.rows[1:4], vectors[1:4])
    found, rows = store.read_wanted("semantic", pa.array([*ids[::2], "elsewhere"], pa.string()))
    assert found.to_pylist() == ids[::2] and (not ids or np.array_equal(rows, vectors[::2]))


def test_few_files_of_vectors_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors_module, "OPEN_MAPS", 2)
    store, vectors = Store(tmp_path), np.arange(20, dtype=np.float16).reshape(10, 2)
    for n in range(5):
        store.write_embeddings(
            "semantic", f"b-{n:05d}.tar", "r1", [str(2 * n), str(2 * n + 1)], vectors[2 * n : 2 * n + 2]
        )
    rows = store.read_corpus("semantic").rows
    assert np.array_equal(rows.take(np.array([9, 0, 4, 9, 5])), vectors[[9, 0, 4, 9, 5]]) and len(rows._maps) == 2
    assert np.array_equal(rows.to_array(), vectors) and np.array_equal(
        rows.to_array(np.arange(10) % 3 == 0), vectors[::3]
    )


def test_one_shard_is_mapped_and_widths_do_not_mix(tmp_path):
    store = Store(tmp_path)
    store.write_embeddings("semantic", "b-00000.tar", "r1", ["a", "b"], np.eye(2, dtype=np.float16))
    assert isinstance(store.read_embeddings("semantic")[1], np.memmap)
    store.write_embeddings("semantic", "b-00001.tar", "r1", ["c"], np.eye(3, dtype=np.float16)[:1])
    with pytest.raises(DataError, match=r"\[2, 3\] wide"):
        store.read_embeddings("semantic")


def test_a_table_written_in_parts_has_the_bytes_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 7)
    rows = [{"stage": "select", "batch": "b", "key": str(n), "reason": "r", "detail": "{}"} for n in range(25)]
    store = Store(tmp_path)
    store.write(tmp_path / "whole.parquet", rows, "dropped")
    table = store.read(tmp_path / "whole.parquet", "dropped")
    for cuts in ([0, 25], [0, 3, 3, 17, 25], [0, 7, 21, 25]):
        writer = TableWriter(tmp_path / "parts.parquet", "dropped")
        for start, end in zip(cuts, cuts[1:], strict=False):
            writer.add_table(table.slice(start, end - start))
        writer.close()
        assert (tmp_path / "parts.parquet").read_bytes() == (
            tmp_path / "whole.parquet"
        ).read_bytes() and writer.count == 25


def test_drops_are_counted_row_group_by_row_group(tmp_path, monkeypatch):
    """As reading all of them at once would, by the row's own stage, in all files of a batch."""
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 2)
    store = Store(tmp_path)
    reasons = ["near_duplicate", "undecodable", "near_duplicate", "duplicate", "near_duplicate"]
    rows = [{"stage": "ingest", "batch": "2026.01.01", "key": str(n), "reason": r} for n, r in enumerate(reasons)]
    for batch, part, some in (("2026.01.01", None, rows), ("2026.01.08", 0, rows[:1]), ("2026.01.08", 1, rows[1:2])):
        filled = [{**dict.fromkeys(schemas()["dropped"].names), **row, "detail": "{}"} for row in some]
        store.write(store.dropped_path("ingest", batch, part), filled, "dropped")
    assert pq.ParquetFile(store.dropped_path("ingest", "2026.01.01")).num_row_groups == 3
    assert store.count_drops(batch="2026.01.01") == {"ingest": {"duplicate": 1, "near_duplicate": 3, "undecodable": 1}}
    assert store.count_drops("ingest", "2026.01.08") == {"ingest": {"near_duplicate": 1, "undecodable": 1}}
    assert store.count_drops("judge") == {} and sum(store.count_drops()["ingest"].values()) == 7


def test_pages_stay_the_same_when_rows_before_them_go():
    """What a store of chunks (the Hub) need not keep twice: pages end where the content says so."""
    random = np.random.default_rng(3)
    table = pa.table({"image_id": [random.bytes(40).hex() for _ in range(60_000)]})
    old, new = to_parquet(table), to_parquet(table.slice(100))
    pieces = [new[start : start + 64] for start in range(0, len(new) - 64, 4096)]
    assert len(pieces) > 500 and sum(piece in old for piece in pieces) / len(pieces) > 0.6


def test_a_file_without_rows_has_no_row_group(tmp_path: Path):
    """`datasets` (3.6, 5.2) takes the first group's rows as a batch's size: a week without an image would stop it."""
    store = Store(tmp_path)
    store.write(store.table_path("images", "1"), [], "images")
    TableWriter(store.table_path("images", "2"), "images").close()
    pq.write_table(schemas()["images"].empty_table(), store.table_path("images", "0"))  # as older versions have it
    files = store.table_files("images")
    assert [pq.read_metadata(path).num_row_groups for path in files] == [1, 0, 0]
    assert (tables.rewrite_empty(files), tables.rewrite_empty(files)) == (1, 0)
    assert len({path.read_bytes() for path in files}) == 1 and store.read_table("images").num_rows == 0
