"""Mining by batches: new images against all, old images against the new ones."""

import itertools
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.config import Params, parse_params, read_raw, resolve
from tasks.errors import ConfigError, DataError
from tasks.knn import choose_prefilter
from tasks.mine import code_cache, partial
from tasks.mine import stage as mine
from tasks.mine.pair_blocks import plan_parts
from tasks.store import Store

BATCHES = ("2026.01.04", "2026.01.11", "2026.01.18")


def params_for(batch: str, neighbours: int = 100, low: float = 0.6, high: float = 0.999) -> Params:
    windows = {"semantic": {"low": low, "high": high}}
    return parse_params(
        resolve(
            read_raw(Path("params.yaml")),
            "test",
            {"open_run": {"batch": batch}, "mine": {"neighbours": neighbours, "windows": windows}},
        )
    )


def image_row(image_id: str, batch: str) -> dict[str, object]:
    return {
        "image_id": image_id,
        "batch": batch,
        "shard": f"{batch}-00000.tar",
        "source_uri": f"s:{image_id}",
        "license_code": "x",
    }


def fill(store: Store, batch: str, ids: list[str], vectors: np.ndarray) -> None:
    store.write(store.table_path("images", batch), [image_row(i, batch) for i in ids], "images")
    if ids:
        store.write_embeddings("semantic", f"{batch}-00000.tar", "r1", ids, vectors)


def rows_of(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(3, 6))[rng.integers(0, 3, n)] + 0.4 * rng.normal(size=(n, 6))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def mined(store: Store, batch: str | None = None) -> list[tuple[str, str, float]]:
    files = sorted(store.folder("data", "neighbours", "semantic").glob(f"{batch or ''}*.parquet"))
    table = store.read(files, "neighbours").to_pydict()
    return sorted(zip(table["query_image_id"], table["target_image_id"], table["similarity"], strict=True))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.lists(st.integers(0, 12), min_size=3, max_size=3))
def test_the_union_over_batches_is_what_one_batch_of_everything_gives(
    tmp_path_factory: pytest.TempPathFactory, seed: int, sizes: list[int]
):
    root = tmp_path_factory.mktemp("runs")
    vectors = rows_of(sum(sizes), seed)
    ids = [f"{i:02d}" for i in np.random.default_rng(seed).permutation(sum(sizes))]
    whole, weekly = Store(root / "whole"), Store(root / "weekly")
    fill(whole, BATCHES[0], ids, vectors)
    mine.run(params_for(BATCHES[0]), whole, "semantic")
    start = 0
    for batch, size in zip(BATCHES, sizes, strict=True):
        fill(weekly, batch, ids[start : start + size], vectors[start : start + size])
        report = mine.run(params_for(batch), weekly, "semantic")
        assert (report.new, report.reused) == (size, start)
        start += size
        new = set(ids[start - size : start])
        assert all(q in new or t in new for q, t, _ in mined(weekly, batch))
    assert mined(weekly) == mined(whole)


def tables(store: Store) -> list[tuple[str, bytes]]:
    folder = store.folder("data", "neighbours", "semantic")
    return [(f.name, f.read_bytes()) for f in sorted(folder.glob("*.parquet"))]


def with_search(params: Params, **changes: object) -> Params:
    return params.model_copy(update={"mine": params.mine.model_copy(update=changes)})


def test_the_order_of_rows_does_not_show_and_only_the_missing_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mine, "CHUNK_QUERIES", 7)
    vectors, ids = rows_of(40, 1), [f"{i:02d}" for i in range(40)]
    order = np.random.default_rng(2).permutation(40)
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    fill(one, BATCHES[0], ids, vectors)
    fill(two, BATCHES[0], [ids[i] for i in order], vectors[order])
    for store in (one, two):
        assert mine.run(params_for(BATCHES[0], neighbours=5), store, "semantic").new == 40
    assert tables(one) == tables(two) and len(tables(one)) == 6
    mine.chunk_path(two, "semantic", BATCHES[0], 2).unlink()
    mine.run(params_for(BATCHES[0], neighbours=5), two, "semantic")
    assert tables(one) == tables(two)


@pytest.mark.parametrize("backend", ["blocked", "torch", "faiss-flat"])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_more_parts_than_images_give_what_one_part_gives(tmp_path: Path, images: int, backend: str):
    params = with_search(params_for(BATCHES[0], neighbours=5), backend=backend)
    whole, parted = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    for store in (whole, parted):
        fill(store, BATCHES[0], [f"{i:02d}" for i in range(images)], rows_of(images, 1))
    mine.run(params, whole, "semantic")
    for part in range(1, 6):
        mine.run(params, parted, "semantic", part=(part, 5))
    mine.run(params, parted, "semantic")
    assert tables(parted) == tables(whole)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(0, 25), st.integers(0, 25)),
    st.integers(1, 7),
    st.sampled_from(["blocked", "torch", "faiss-flat"]),
    st.integers(1, 9),
    st.data(),
)
def test_any_number_of_parts_in_any_order_gives_the_bytes_of_the_whole(
    seed: int, sizes: tuple[int, int], parts: int, backend: str, neighbours: int, data: st.DataObject
):
    """Also where a part is killed after some blocks, and where some parts never ran."""
    order = data.draw(st.permutations(range(1, parts + 1)))
    started, killed = order[: data.draw(st.integers(0, parts))], data.draw(st.sets(st.integers(0, 30)))
    again = sorted(data.draw(st.sets(st.sampled_from(order))))
    vectors, ids = rows_of(sum(sizes), seed), [f"{i:02d}" for i in np.random.default_rng(seed).permutation(sum(sizes))]
    params = with_search(params_for(BATCHES[1], neighbours=neighbours), backend=backend)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(mine, "CHUNK_QUERIES", 7)
        whole, parted = Store(Path(folder) / "whole"), Store(Path(folder) / "parts")
        for store in (whole, parted):
            fill(store, BATCHES[0], ids[: sizes[0]], vectors[: sizes[0]])
            fill(store, BATCHES[1], ids[sizes[0] :], vectors[sizes[0] :])
        report = mine.run(params, whole, "semantic")
        patch.setattr(partial, "rows_within", lambda *_: 6)  # small blocks
        for i in started if parts > 1 else ():
            mine.run(params, parted, "semantic", part=(i, parts))
        for n, path in enumerate(sorted(parted.folder(".run").rglob("*.npy"))):
            if n in killed:
                path.unlink()  # killed before this block
        for i in again if parts > 1 else ():
            mine.run(params, parted, "semantic", part=(i, parts))  # its second try
        merged = mine.run(params, parted, "semantic")
        assert tables(parted) == tables(whole)
        assert (merged.new, merged.read, merged.reused, merged.figures) == (
            report.new,
            report.read,
            report.reused,
            report.figures,
        )
        assert not list(parted.folder(".run").rglob("*.npy")), "merged candidates are removed"
        assert mine.run(params, parted, "semantic", part=(1, 2)).notes == [], "nothing is left to do"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9), st.integers(2, 60))
def test_the_blocks_of_all_parts_hold_each_pair_with_a_new_image_once(new: int, old: int, parts: int, rows: int):
    seen: Counter[tuple[int, int]] = Counter()
    plan = plan_parts(new, old, parts, rows)
    for block in (block for part in plan for block in part):
        first = range(block.first.start, block.first.stop)
        if block.second is None:
            pairs = list(itertools.combinations(first, 2))
            assert len(first) <= rows
        else:
            pairs = list(itertools.product(first, range(block.second.start, block.second.stop)))
            assert len(first) + block.second.stop - block.second.start <= rows
        assert len(pairs) == block.pairs
        seen.update(pairs)
    assert set(seen.values()) <= {1}
    wanted = [(a, b) for a, b in itertools.combinations(range(new + old), 2) if a < new]
    assert set(seen) == set(wanted) and len(plan) == parts


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 7, 12, 20, 40])
def test_parts_have_nearly_equal_work(parts: int):
    for new, old in ((20_000_000, 0), (1_000_000, 20_000_000)):
        work = [sum(block.pairs for block in part) for part in plan_parts(new, old, parts, 10_000_000)]
        assert max(work) <= 1.25 * sum(work) / parts


def test_candidates_of_another_window_are_not_merged(tmp_path: Path):
    vectors, ids = rows_of(30, 1), [f"{i:02d}" for i in range(30)]
    store, other = Store(tmp_path / "a"), Store(tmp_path / "b")
    for one in (store, other):
        fill(one, BATCHES[0], ids, vectors)
    for i in (1, 2):
        mine.run(params_for(BATCHES[0], low=0.9), store, "semantic", part=(i, 2))
    for one in (store, other):
        mine.run(params_for(BATCHES[0], low=0.5), one, "semantic")
    assert tables(store) == tables(other)


def test_neither_the_backend_nor_the_number_of_joins_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mine, "CHUNK_QUERIES", 7)
    vectors, ids = rows_of(60, 4), [f"{i:02d}" for i in range(60)]
    written = []
    for name, changes in (
        ("blocked", {}),
        ("faiss-flat", {"backend": "faiss-flat"}),
        ("torch", {"backend": "torch"}),
        ("many joins", {}),
    ):
        store, params = Store(tmp_path / name), params_for(BATCHES[1], neighbours=5)
        fill(store, BATCHES[0], ids[:40], vectors[:40])
        fill(store, BATCHES[1], ids[40:], vectors[40:])
        if name == "many joins":
            monkeypatch.setattr(mine, "group_chunks", lambda chunks, **_: [[c] for c in reversed(chunks)])
        mine.run(params.model_copy(update={"mine": params.mine.model_copy(update=changes)}), store, "semantic")
        written.append([(f.name, f.read_bytes()) for f in sorted((store.root / "data/neighbours/semantic").iterdir())])
    assert written[0] == written[1] == written[2] == written[3] and len(written[0]) == 9


def test_an_approximate_backend_reports_the_same_recall_in_every_run(tmp_path: Path):
    store, params = Store(tmp_path), params_for(BATCHES[0], neighbours=5)
    fill(store, BATCHES[0], [f"{i:03d}" for i in range(200)], rows_of(200, 4))
    params = params.model_copy(update={"mine": params.mine.model_copy(update={"backend": "faiss-hnsw"})})
    first, again = (mine.run(params, store, "semantic").figures for _ in range(2))
    assert first == again and 0.9 < first["recall_semantic"] <= 1


def test_one_join_serves_as_many_files_as_memory_allows():
    chunks = [(n, slice(10_000 * n, 10_000 * (n + 1))) for n in range(5)]
    room_for_two = 2 * (2 * 10_000 * 20 * 80 >> 20) + 2  # MiB; half of them for 20,000 rows of 20 candidates
    assert [[n for n, _ in g] for g in mine.group_chunks(chunks, top_k=20, memory_mib=room_for_two)] == [
        [0, 1],
        [2, 3],
        [4],
    ]
    assert (
        len(mine.group_chunks(chunks, top_k=20, memory_mib=1)) == 5
        and mine.group_chunks([], top_k=20, memory_mib=1) == []
    )


@pytest.mark.parametrize("backend", ["blocked", "torch", "faiss-flat"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_corpus_of_none_one_and_two_images_with_more_neighbours_than_images(tmp_path: Path, backend: str, count: int):
    store, params = Store(tmp_path), params_for(BATCHES[0], neighbours=50, low=-1.0)
    params = params.model_copy(update={"mine": params.mine.model_copy(update={"backend": backend})})
    turned = np.array([[1, 0], [0.8, 0.6]], np.float16)
    fill(store, BATCHES[0], ["a", "b"][:count], turned[:count])
    report = mine.run(params, store, "semantic")
    similarity = float(np.float32((turned[0].astype(np.float64) * turned[1].astype(np.float64)).sum()))
    assert mined(store) == ([("a", "b", similarity), ("b", "a", similarity)] if count == 2 else [])
    assert (report.new, report.figures["candidates_semantic"]) == (count, 2.0 * (count == 2))


def test_an_empty_batch_writes_an_empty_file(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, BATCHES[0], ["a", "b"], rows_of(2, 1))
    mine.run(params_for(BATCHES[0]), store, "semantic")
    fill(store, BATCHES[1], [], rows_of(0, 1))
    report = mine.run(params_for(BATCHES[1]), store, "semantic")
    assert (report.new, report.reused, report.read) == (0, 2, 0)
    assert mined(store, BATCHES[1]) == []
    assert mine.chunk_path(store, "semantic", BATCHES[1], 0).exists()


def test_errors_state_the_next_step(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, BATCHES[0], ["a"], rows_of(1, 1))
    with pytest.raises(ConfigError, match="'mine.windows.semantic': 'low' is 0.9 and 'high' is 0.9"):
        mine.run(params_for(BATCHES[0], low=0.9, high=0.9), store, "semantic")
    with pytest.raises(ConfigError, match="no encoder"):
        mine.run(params_for(BATCHES[0]), store, "smell")
    with pytest.raises(DataError, match="not embedded"):
        mine.run(params_for(BATCHES[0]), store, "pattern")


def test_a_large_join_codes_each_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the threshold of a large join at nothing: the rows are what the float32 prefilter gives, and a later batch
    codes its own rows alone.
    """
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 64))[rng.integers(0, 20, 700)] + 0.4 * rng.normal(size=(700, 64))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    ids = [f"{i:03d}" for i in rng.permutation(700)]
    coded: list[int] = []
    encode = code_cache.encode
    monkeypatch.setattr(code_cache, "encode", lambda rows, axes: coded.append(len(rows)) or encode(rows, axes))
    stores = {}
    for name, pairs in (("float32", 1 << 60), ("codes", 1)):
        monkeypatch.setattr(choose_prefilter, "LARGE_PAIRS", pairs)
        store = stores[name] = Store(tmp_path / name)
        for batch, cut in ((BATCHES[0], slice(0, 600)), (BATCHES[1], slice(600, 700))):
            coded.clear()
            fill(store, batch, ids[cut], vectors[cut])
            mine.run(params_for(batch, neighbours=9), store, "semantic")
            if name == "codes":
                assert [n for n in coded if n > 2 * code_cache.PROBED_ROWS] == [cut.stop - cut.start]
    assert mined(stores["codes"]) == mined(stores["float32"]) != []
    folder = next(stores["codes"].folder("data", "neighbours", "semantic", "codes").iterdir())
    assert sorted(p.name for p in folder.iterdir()) == [
        f"{BATCHES[0]}-00000.npy",
        f"{BATCHES[1]}-00000.npy",
        "axes.npz",
    ]
    assert not stores["float32"].folder("data", "neighbours", "semantic", "codes").exists()
    stores["codes"].write_embeddings(
        "semantic", f"{BATCHES[0]}-00000.tar", "r1", ids[:600], np.roll(vectors[:600], 1, axis=0)
    )  # other rows: their codes are made anew
    coded.clear()
    mine.chunk_path(stores["codes"], "semantic", BATCHES[1], 0).unlink()
    mine.run(params_for(BATCHES[1], neighbours=9), stores["codes"], "semantic")
    assert [n for n in coded if n > 2 * code_cache.PROBED_ROWS] == [600]
