"""The selection through files gives the bytes of the selection in memory, at any limit."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import ENCODER_ROLES, MINER_ROLES, Params, parse_params, read_raw, resolve
from tasks.names import stable_id
from tasks.select import stage
from tasks.select.candidates import ABSENT, Candidates, MinedRows, merge_candidates, rank_among_all
from tasks.select.order import preference_classes, seeded_hashes
from tasks.select.quotas import QUOTAS, within_quotas
from tasks.select.ranges import pack_ranks, rank_type, unpack_ranks
from tasks.select.settle import ByPairId, pack_pairs, pair_fields, pair_ids, unpack_pairs
from tasks.select.spill import SortedRuns, Spill, WorkingMemory
from tasks.store import Store
from tests.support.candidates import candidates_of, pairs_of, table_of
from tests.support.estimates import write_model

BATCHES = ("2026.01.04", "2026.01.11")
TOP_K = 6
PLENTY = WorkingMemory(1 << 30)


def params_for(batch: str, **changes: object) -> Params:
    windows = {e: {"low": 0.2, "high": 0.999} for e in MINER_ROLES}
    section = {"pairs_per_batch": None, "nearest_share": 1.0, **changes}
    layers = {"open_run": {"batch": batch}, "mine": {"windows": windows, "neighbours": TOP_K}, "select": section}
    layers["embed"] = {"encoders": {"words": {"model": "plain", "kind": "tfidf"}}}
    return parse_params(resolve(read_raw(Path("params.yaml")), "test", layers))


class World:
    """Two batches of images with random vectors under four encoders, and what `mine` would have found."""

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        self.ids = [f"{n:02x}{rng.integers(1 << 30):08x}"[::-1] for n in range(count)]
        self.batch_of = rng.integers(0, 2, count)
        self.vectors = {}
        for encoder in MINER_ROLES:
            rows = rng.standard_normal((count, 3))
            self.vectors[encoder] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)

    def mined(self, encoder: str, batch: int) -> list[dict[str, object]]:
        """Rows of table `neighbours` of a batch."""
        exact = self.vectors[encoder].astype(np.float64)
        cosines = exact @ exact.T
        rows: list[dict[str, object]] = []
        for query in range(len(self.ids)):
            targets = [
                t
                for t in range(len(self.ids))
                if t != query
                and max(self.batch_of[query], self.batch_of[t]) == batch
                and 0.2 <= cosines[query, t] < 0.999
            ]
            targets.sort(key=lambda t: (-cosines[query, t], self.ids[t]))
            rows += [
                {
                    "query_image_id": self.ids[query],
                    "target_image_id": self.ids[target],
                    "similarity": cosines[query, target],
                    "rank": rank,
                }
                for rank, target in enumerate(targets[:TOP_K])
            ]
        return rows

    def fill(self, store: Store, batch: int) -> None:
        """Write a batch's images, vectors and neighbours; the latter in two files of several row groups."""
        name, own = BATCHES[batch], np.flatnonzero(self.batch_of == batch)
        images = [
            {
                "image_id": self.ids[n],
                "batch": name,
                "shard": "s",
                "source_uri": f"s{n % 2}:{n}",
                "caption": f"a {('red', 'blue')[n % 2]} star and {n % 3} circles" if n % 5 else None,
            }
            for n in own
        ]
        store.write(store.table_path("images", name), images, "images")
        for encoder in MINER_ROLES:
            ids = [self.ids[n] for n in own]
            store.write_embeddings(encoder, f"{name}-00000.tar", "r", ids, self.vectors[encoder][own])
            rows = self.mined(encoder, batch)
            for number, part in enumerate((rows[: len(rows) // 3], rows[len(rows) // 3 :])):
                path = store.folder("data", "neighbours", encoder, f"{name}-{number:05d}.parquet")
                store.write(path, part, "neighbours")


def table_bytes(store: Store) -> dict[str, bytes]:
    """The tables that `select` writes."""
    files = sorted([*store.root.glob("data/pairs/*"), *store.root.glob("data/dropped/select/*")])
    return {str(path.relative_to(store.root)): path.read_bytes() for path in files}


changes = st.fixed_dictionaries(
    {
        "pairs_per_query": st.integers(1, 3),
        "pairs_per_target": st.integers(1, 4),
        "pairs_per_batch": st.sampled_from([None, 7, 40]),
        "nearest_share": st.sampled_from([1.0, 0.3]),
        "agreement": st.sampled_from(["rank", "encoders"]),
        "both_directions": st.booleans(),
        "drop_query_copies": st.booleans(),
        "copy_similarity": st.sampled_from([{}, {"semantic": 0.9}]),
        "bands": st.sampled_from([(), (), (1, 2)]),
        "bands_by": st.sampled_from(["rank", "similarity"]),
        "pairs_per_encoder": st.sampled_from([{}, {"pattern": 9}]),
        "pairs_per_source": st.sampled_from([None, 11]),
        "same_content_min": st.sampled_from([None, {"semantic": 0.8}, {"semantic": 0.95, "pattern": 0.7}]),
    }
)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 999), st.integers(2, 24), changes, st.lists(st.integers(2_000, 60_000), min_size=2, max_size=2))
def test_any_limit_of_memory_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, section: dict[str, object], limits: list[int]
):
    world, expected = World(seed, count), {}
    model = write_model(tmp_path_factory.mktemp("model") / "differences.json", dict.fromkeys(ENCODER_ROLES, "r"))
    if seed % 2:
        section = {**section, "differences": str(model), "accepted_min": 0.4}
        section |= {"bands": (2, 1), "bands_by": "differences"} if seed % 3 else {}
    for limit in (PLENTY.size_bytes, *limits):
        store = Store(tmp_path_factory.mktemp("store"))
        reports = []
        for batch, name in enumerate(BATCHES):
            world.fill(store, batch)
            reports.append(stage.select(params_for(name, **section), store, WorkingMemory(limit)))
        made = {**table_bytes(store), "reports": "".join(r.to_json() for r in reports)}
        expected = expected or made
        assert made == expected
        assert not store.folder(".run", "select", "rows").exists(), "what the stage spilled is gone"


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 999), st.integers(2, 24), changes)
def test_the_pairs_are_those_of_the_simple_form_in_memory(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, section: dict[str, object]
):
    """Specification: the encoders' rows merged, sorted by class, hash and key, then cut by the quotas."""
    section = {**section, "drop_query_copies": False}
    world, store = World(seed, count), Store(tmp_path_factory.mktemp("store"))
    ids = pa.array(sorted(world.ids), pa.string())
    index = {image: n for n, image in enumerate(ids.to_pylist())}
    published: list[tuple[str, str]] = []
    for batch, name in enumerate(BATCHES):
        world.fill(store, batch)
        params = params_for(name, **section)
        ranked = {}
        for encoder in MINER_ROLES:
            new, earlier = (_as_mined(world.mined(encoder, b), index) for b in (batch, 0))
            ranked[encoder] = rank_among_all(new, earlier, TOP_K) if batch else new
        c = merge_candidates(ids, ranked, with_similarities=True)
        mined = len(c)
        for encoder, limit in (params.select.same_content_min or {}).items():
            vectors = world.vectors[encoder][[world.ids.index(i) for i in ids.to_pylist()]].astype(np.float64)
            c = c.take(np.einsum("md,md->m", vectors[c.queries], vectors[c.targets]) < limit)
        hashes = seeded_hashes(c.pair_ids, params.open_run.seed)
        c = c.take(np.lexsort((c.keys, hashes, preference_classes(c, hashes, params))))
        ends = np.array([[index[q], index[t]] for q, t in published], np.int64).reshape(-1, 2)
        is_new = np.array([world.batch_of[world.ids.index(i)] == batch for i in ids.to_pylist()], bool)
        sources = np.array([world.ids.index(i) % 2 for i in ids.to_pylist()], np.int64)
        selection = within_quotas(c, (ends[:, 0], ends[:, 1]), params.select, is_new, sources)
        report = stage.select(params, store, WorkingMemory(4_000))
        rows = store.read(store.table_path("pairs", name), "pairs").to_pylist()
        assert sorted((r["query_image_id"], r["target_image_id"]) for r in rows) == sorted(pairs_of(selection.pairs))
        dropped = store.read_dropped("select", name).to_pylist()
        expected = sorted(
            (stable_id(q, t), QUOTAS[quota])
            for (q, t), quota in zip(pairs_of(c.take(selection.rejected)), selection.full_quotas.tolist(), strict=True)
        )
        over = [(r["key"], r["detail"].split('"quota": "')[1].split('"')[0]) for r in dropped if "quota" in r["detail"]]
        assert over == expected and report.read == mined
        assert report.dropped.get("same_content", 0) == mined - len(c)
        published += [(r["query_image_id"], r["target_image_id"]) for r in rows]


def _as_mined(rows: list[dict[str, object]], index: dict[str, int]) -> MinedRows:
    ends = (np.array([index[str(r[c])] for r in rows], np.int32) for c in ("query_image_id", "target_image_id"))
    similarities = np.array([r["similarity"] for r in rows], np.float32)
    return MinedRows(*ends, similarities, np.array([r["rank"] for r in rows], np.int32))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, 60), max_size=5), st.integers(1, 40))
def test_sorted_runs_are_read_back_as_one_sequence(
    tmp_path_factory: pytest.TempPathFactory, seed: int, lengths: list[int], rows: int
):
    dtype = np.dtype([("major", "<i4"), ("hash", "<u8"), ("query", "<i4"), ("target", "<i4")])
    rng, runs, every = np.random.default_rng(seed), SortedRuns(tmp_path_factory.mktemp("runs"), dtype), []
    for length in lengths:
        records = np.zeros(length, dtype)
        records["major"], records["query"] = rng.integers(0, 4, length), rng.integers(0, 9, length)
        records["hash"] = rng.integers(0, 1 << 64, length, np.uint64)
        records["hash"][rng.random(length) < 0.2] = 5  # some are equal in all but their images
        runs.add(records)
        every += records.tolist()
    assert [record for bucket in runs.iter_buckets(rows) for record in bucket.tolist()] == sorted(every)


def test_a_bucket_holds_about_as_many_records_as_asked_for(tmp_path: Path):
    dtype = np.dtype([("major", "<i4"), ("hash", "<u8"), ("query", "<i4"), ("target", "<i4")])
    runs = SortedRuns(tmp_path, dtype)
    for seed in range(3):
        records = np.zeros(5_000, dtype)
        records["hash"] = np.random.default_rng(seed).integers(0, 1 << 64, 5_000, np.uint64)
        records["major"] = np.repeat([0, 1, 7], [40, 60, 4_900])
        runs.add(records)
    sizes = [len(bucket) for bucket in runs.iter_buckets(1_000)]
    assert sum(sizes) == 15_000 and max(sizes) < 1_300 and len(sizes) < 20


def test_partitions_keep_the_order_of_the_calls(tmp_path: Path):
    spill = Spill(tmp_path, "rows", np.dtype([("a", "<i4")]), 3)
    for start in (0, 5):
        records = np.arange(start, start + 5).astype(spill.dtype)
        spill.add(records, np.arange(start, start + 5) % 3)
    assert [spill.read(n)["a"].tolist() for n in range(3)] == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    assert spill.counts.tolist() == [4, 3, 3]
    spill.remove(1)
    assert not len(spill.read(1))


def test_records_of_pairs_come_back_whole_and_by_id(tmp_path: Path):
    c = table_of([("a", "b", {"semantic": 0, "caption": 4}), ("c", "a", {"pattern": 2})], {1: {"semantic": 1}})
    dtype = np.dtype([*pair_fields(10), ("reverse_ranks", rank_type(10), len(MINER_ROLES))])
    back = unpack_pairs(c.image_ids, pack_pairs(c, dtype))
    for name in ("queries", "targets", "ranks", "reverse_ranks"):
        assert getattr(back, name).tolist() == getattr(c, name).tolist()
    assert back.pair_ids.tolist() == c.pair_ids.tolist()
    many = candidates_of([a + b for a in "abcdef" for b in "abcdef" if a != b])
    by_id = ByPairId(tmp_path, "pairs", np.dtype(pair_fields(10)), 4)
    by_id.add(pack_pairs(many, np.dtype(pair_fields(10))))
    ids = [i for records in by_id.iter_sorted() for i in pair_ids(records).tolist()]
    assert ids == sorted(many.pair_ids.tolist()) and by_id.total == len(many)


@pytest.mark.parametrize("top_k", [10, 70_000])
def test_ranks_are_packed_without_loss(top_k: int):
    ranks = np.array([[0, top_k - 1, ABSENT]], np.int32)
    packed = pack_ranks(ranks, rank_type(top_k))
    assert packed.dtype == rank_type(top_k) and unpack_ranks(packed).tolist() == ranks.tolist()


def test_memory_is_cut_into_rows_and_pieces():
    assert [WorkingMemory(100).rows(n) for n in (10, 1000)] == [10, 1]
    assert [WorkingMemory(100).pieces(n, 10) for n in (0, 10, 11)] == [1, 1, 2]


def test_pairs_that_an_encoder_lost_to_a_takedown_do_not_come_back_for_others():
    from tasks.select.ranges import only_new

    c: Candidates = candidates_of(["ab", "bc", "ca"])
    is_lost = np.array([False, True, False])
    is_new = np.array([True, True, False])
    assert pairs_of(only_new(c, is_new, is_lost)) == [("a", "b"), ("b", "c"), ("c", "a")]
    assert pairs_of(only_new(c, is_lost, is_lost)) == [("b", "c")]
