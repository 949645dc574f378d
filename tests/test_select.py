"""Selecting pairs: quotas, order, negatives with the query first; nothing that is published comes again."""

import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import select
from tasks.config import Params, SelectConfig, parse_params, read_raw, resolve
from tasks.errors import DataError
from tasks.records import stable_id
from tasks.select import Candidate, Vectors, band_of, hard_negatives, in_order, over_bands, unite, within_quotas
from tasks.store import Store

NO_QUOTAS = SelectConfig(pairs_per_query=10_000, pairs_per_target=10_000)
pairs_of_letters = st.lists(st.sampled_from([a + b for a, b in itertools.permutations("abcdef", 2)]), unique=True, max_size=30)


def candidates(names: list[str]) -> list[Candidate]:
    return [Candidate(n[0], n[1], {"semantic": i % 5}) for i, n in enumerate(names)]


def test_unites_the_encoders_with_provenance():
    one = {"query_image_id": ["b", "a", "a"], "target_image_id": ["a", "b", "a"], "rank": [2, 0, 0]}
    two = {"query_image_id": ["a"], "target_image_id": ["b"], "rank": [4]}
    there, back = {"semantic": 0, "caption": 4}, {"semantic": 2}
    assert unite({"caption": two, "semantic": one}) == [Candidate("a", "b", there, back), Candidate("b", "a", back, there)]


def test_agreement_of_encoders_comes_first():
    all_first = {"semantic": 0, "pattern": 0, "caption": 0}
    mutual, one_way = Candidate("a", "b", all_first, all_first), Candidate("c", "d", all_first)
    one, far = Candidate("e", "f", {"caption": 0}), Candidate("g", "h", {"caption": 9})
    assert [c.tier for c in (mutual, one_way, one, far)] == [0, 4, 10, 23]
    assert in_order([far, one, one_way, mutual], seed=0) == [mutual, one_way, one, far]


@settings(max_examples=60, deadline=None)
@given(pairs_of_letters, st.integers(0, 99), st.integers(1, 3), st.integers(1, 3), st.one_of(st.none(), st.integers(1, 9)), st.randoms())
def test_quotas_hold_and_the_order_of_inputs_does_not_matter(
    names: list[str], seed: int, per_query: int, per_target: int, per_batch: int | None, chance: random.Random
):
    config = SelectConfig(pairs_per_query=per_query, pairs_per_target=per_target, pairs_per_batch=per_batch)
    shuffled = candidates(names)
    chance.shuffle(shuffled)
    published = [("a", "b"), ("a", "c")]
    taken, left = within_quotas(in_order(candidates(names), seed), published, config)
    assert within_quotas(in_order(shuffled, seed), published, config) == (taken, left)
    made = [(c.query, c.target) for c in taken]
    assert not set(made) & set(published)
    for end, most in ((0, per_query), (1, per_target)):
        for letter in "abcdef":
            assert sum(p[end] == letter for p in made) <= max(0, most - sum(p[end] == letter for p in published))
    assert per_batch is None or len(made) <= per_batch
    assert len(taken) + len(left) == len([n for n in names if n not in ("ab", "ac")])


encoders_of_pairs = st.lists(st.sets(st.sampled_from(select.ENCODERS), min_size=1), min_size=30, max_size=30)


@settings(max_examples=60, deadline=None)
@given(pairs_of_letters, encoders_of_pairs, st.integers(0, 9), st.integers(0, 6), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.randoms())
def test_no_encoder_and_no_source_brings_more_and_both_directions_come_or_neither(
    names: list[str], mined_by: list[set[str]], seed: int, semantic: int, per_source: int, per_query: int, both: bool, chance: random.Random
):
    quotas = {"pairs_per_query": per_query, "pairs_per_encoder": {"semantic": semantic}, "pairs_per_source": per_source, "pairs_per_batch": 13}
    config = SelectConfig(**quotas, pairs_per_target=3, both_directions=both)
    sources = {letter: "one" if letter < "d" else "two" for letter in "abcdef"}
    columns = {e: [n for n, mined in zip(names, mined_by, strict=False) if e in mined] for e in select.ENCODERS}
    some = unite({e: {"query_image_id": [n[0] for n in of], "target_image_id": [n[1] for n in of], "rank": [0] * len(of)} for e, of in columns.items()})
    published = [("a", "b"), ("c", "d")]
    taken, left = within_quotas(in_order(some, seed), published, config, None, sources)
    shuffled = list(some)
    chance.shuffle(shuffled)
    assert within_quotas(in_order(shuffled, seed), published, config, None, sources) == (taken, left)
    made = {(c.query, c.target) for c in taken}
    assert len(made) == len(taken) <= 13 and not made & set(published)  # what is published stays, and does not come again
    assert sum("semantic" in c.ranks for c in taken) <= semantic
    assert max(Counter(sources[c.query] for c in taken).values(), default=0) <= per_source
    assert max(Counter(q for q, _ in [*made, *published]).values()) <= per_query
    assert max(Counter(t for _, t in [*made, *published]).values()) <= 3
    assert not both or all((t, q) in made | set(published) for q, t in made)


@settings(max_examples=60, deadline=None)
@given(pairs_of_letters, st.integers(0, 9), st.floats(0, 1), st.randoms())
def test_at_most_a_share_of_pairs_ends_at_the_query_s_nearest_picture(names: list[str], seed: int, share: float, chance: random.Random):
    config = SelectConfig(pairs_per_query=9, pairs_per_target=9, nearest_share=share)
    some = [Candidate(n[0], n[1], {"semantic": chance.randrange(2)} if chance.random() < 0.8 else {"pattern": 0}) for n in sorted(set(names)) if n[0] != n[1]]
    shuffled = chance.sample(some, len(some))
    taken, left = within_quotas(in_order(some, seed), [], config)
    assert within_quotas(in_order(shuffled, seed), [], config) == (taken, left)
    nearest = sum(c.ranks.get("semantic") == 0 for c in taken)
    assert nearest <= share * len(taken) + 1e-9 or share == 1
    assert all(why == "nearest_share" and c.ranks["semantic"] == 0 for c, why in left)
    assert len(taken) - nearest == sum(c.ranks.get("semantic") != 0 for c in some)  # the others are not touched


def test_the_other_direction_is_a_pair_of_its_own_mined_by_the_same_encoders():
    there, alone = Candidate("a", "b", {"semantic": 0, "caption": 3}, {"semantic": 2}), Candidate("c", "d", {"pattern": 1})
    config = SelectConfig(pairs_per_query=1, pairs_per_target=1, both_directions=True)
    taken, _ = within_quotas([there, alone], [], config)
    assert {(c.query, c.target): c.ranks for c in taken} == {
        ("a", "b"): there.ranks,
        ("b", "a"): {"semantic": 2, "caption": 3},
        ("c", "d"): alone.ranks,
        ("d", "c"): alone.ranks,
    }
    assert len({c.pair_id for c in taken}) == 4
    taken, left = within_quotas([there, Candidate("b", "e", {"semantic": 1})], [], config)
    assert len(taken) == 2 and [(c.target, why) for c, why in left] == [("e", "pairs_per_query")]


@settings(max_examples=40, deadline=None)
@given(pairs_of_letters, st.integers(0, 30), st.integers(0, 9))
def test_without_quotas_the_union_over_batches_is_the_whole(names: list[str], cut: int, seed: int):
    whole, _ = within_quotas(in_order(candidates(names), seed), [], NO_QUOTAS)
    first, _ = within_quotas(in_order(candidates(names)[:cut], seed), [], NO_QUOTAS)
    second, _ = within_quotas(in_order(candidates(names), seed), [(c.query, c.target) for c in first], NO_QUOTAS)
    assert {c.pair_id for c in first} | {c.pair_id for c in second} == {c.pair_id for c in whole}
    assert not {c.pair_id for c in first} & {c.pair_id for c in second}


WINDOWS = {"semantic": (0.8, 0.9), "caption": (0.5, 1.0)}


CASES = [(0.899, 0, 0, 0), (0.86, 3, 0, 1), (0.84, 6, 1, 1), (0.801, 11, 2, 2), (0.8, 40, 2, 2)]


@pytest.mark.parametrize(("similarity", "rank", "by_rank", "by_similarity"), CASES)
def test_bands_part_the_ranks_or_the_window(similarity: float, rank: int, by_rank: int, by_similarity: int):
    c = Candidate("a", "b", {"semantic": rank, "caption": 50}, {}, {"semantic": similarity, "caption": 0.99})  # the one that ranks it best counts
    assert band_of(c, 3, by="rank", neighbours=12, windows=WINDOWS) == by_rank
    assert band_of(c, 3, by="similarity", neighbours=12, windows=WINDOWS) == by_similarity


def fan(queries: int, ranks: int) -> list[Candidate]:
    """Each query with targets of its own at ranks 0, 1, ..."""
    return [Candidate(f"q{q}", f"t{q}-{r}", {"semantic": r}) for q in range(queries) for r in range(ranks)]


def thirds(c: Candidate) -> int:
    return min(c.ranks.values()) // 4


def test_draws_fall_over_the_bands_by_their_weights_and_each_query_takes_them_in_turn():
    order = over_bands(fan(400, 12), 0, (2, 1, 1), thirds)
    assert len({c.query for c in order[:400]}) == 400  # everyone's first before anyone's second
    share = [sum(thirds(c) == b for c in order[:400]) / 400 for b in range(3)]
    assert share == pytest.approx([0.5, 0.25, 0.25], abs=0.08)
    for query in ("q0", "q7", "q99"):
        drawn = [thirds(c) for c in order if c.query == query]
        assert sorted(drawn[:3]) == [0, 1, 2] and drawn[3:6] == drawn[:3]
    ranks = [min(c.ranks.values()) for c in order[:400] if thirds(c) == 0]
    assert max(ranks.count(r) for r in range(4)) < 0.4 * len(ranks)  # inside a band the nearest is nothing special
    assert over_bands(fan(400, 12), 1, (2, 1, 1), thirds)[:400] != order[:400]


def test_inside_a_band_what_more_encoders_mined_comes_first():
    agreed = Candidate("a", "c", {"semantic": 3, "pattern": 2})
    assert over_bands([Candidate("a", "b", {"semantic": 0}), agreed, Candidate("a", "d", {"pattern": 1})], 0, (1,), lambda c: 0)[0] is agreed


@settings(max_examples=60, deadline=None)
@given(pairs_of_letters, st.integers(0, 99), st.lists(st.floats(0.1, 5), min_size=1, max_size=4), st.randoms())
def test_drawing_depends_on_the_seed_and_the_set_alone(names: list[str], seed: int, weights: list[float], chance: random.Random):
    def band(c: Candidate) -> int:
        return min(c.ranks.values()) % len(weights)

    some = candidates(names)
    shuffled = list(some)
    chance.shuffle(shuffled)
    order = over_bands(some, seed, weights, band)
    assert over_bands(shuffled, seed, weights, band) == order
    assert sorted(c.pair_id for c in order) == sorted(c.pair_id for c in some)
    turns = Counter[str]()
    turn_of = []
    for c in order:
        turn_of.append(turns[c.query])
        turns[c.query] += 1
    assert turn_of == sorted(turn_of)


def on_circle(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)


def test_negatives_are_the_retrieved_nearest_to_the_target_but_no_copy_of_it():
    ids = ["query", "target", "copy", "near", "far", "further"]
    vectors = Vectors({"semantic": (ids, on_circle(0, 40, 41, 60, 80, 110))})
    c = Candidate("query", "target", {"semantic": 1})
    retrieved = {"semantic": {"query": ["target", "copy", "far"], "target": ["query", "near", "further", "copy"]}, "caption": {"query": ["unasked"]}}
    limits = {"semantic": 0.99, "pattern": 0.99, "caption": 0.99}
    negatives, copies = hard_negatives(c, retrieved, vectors, limits=limits, count=2)
    assert copies == ["copy"]
    assert [i for i, _ in negatives] == ["near", "far"]
    assert [s for _, s in negatives] == pytest.approx([np.cos(np.deg2rad(20)), np.cos(np.deg2rad(40))], abs=2e-3)


def test_a_margin_is_measured_in_the_distance_of_query_and_target_and_copies_of_the_query_stay_out():
    ids = ["query", "target", "twin", "near", "far"]
    vectors = Vectors({"semantic": (ids, on_circle(0, 40, 1, 60, 85)), "pattern": (ids, on_circle(0, 40, 80, 60, 85))})
    c, retrieved = Candidate("query", "target", {"semantic": 0}), {"semantic": {"query": ["twin", "near", "far"]}}

    def mined(**settings: object) -> tuple[list[str], list[str]]:
        negatives, copies = hard_negatives(c, retrieved, vectors, limits={"semantic": 0.99, "pattern": 0.99, "caption": 0.99}, count=5, **settings)
        return [i for i, _ in negatives], copies

    assert mined() == (["near", "twin", "far"], [])
    assert mined(query_copies=False) == (["near", "far"], ["twin"])
    assert mined(margin=0.5) == (["twin", "far"], ["near"])  # 1 - cos 20 is a quarter of 1 - cos 40, 1 - cos 39 nearly the whole
    assert mined(margin=1.0) == (["far"], ["near", "twin"])
    assert mined(margin=0.2) == mined()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(0, 1.5))
def test_the_margin_holds_for_every_negative(seed: int, margin: float):
    rng = np.random.default_rng(seed)
    ids = [f"{i:02d}" for i in range(20)]
    vectors = Vectors({e: (ids, on_circle(*rng.uniform(0, 180, 20))) for e in ("semantic", "pattern")})
    c, retrieved = Candidate("00", "01", {"semantic": 0, "pattern": 1}), {"semantic": {"00": ids[2:12]}, "pattern": {"01": ids[8:]}}
    limits = {"semantic": 0.99, "pattern": 0.98, "caption": 1.0}
    negatives, copies = hard_negatives(c, retrieved, vectors, limits=limits, count=30, margin=margin, query_copies=False)
    assert {i for i, _ in negatives} | set(copies) == set(ids[2:]) and not {i for i, _ in negatives} & set(copies)
    for i, similarity in negatives:
        encoder = "semantic" if i in ids[2:12] else "pattern"
        assert 1 - similarity >= margin * (1 - vectors.similarity(encoder, ["00"], ["01"])[0])
        for e in ("semantic", "pattern"):
            assert max(*vectors.similarity(e, [i], ["00"]), *vectors.similarity(e, [i], ["01"])) < limits[e]


# --- the stage, on three batches of a circle -------------------------------------------------------------------------


def params_for(batch: str, **changes: object) -> Params:
    windows = {e: {"low": 0.8, "high": 0.999} for e in ("semantic", "pattern", "caption")}
    section = {"pairs_per_query": 2, "pairs_per_target": 2, "pairs_per_batch": None, "nearest_share": 1.0, **changes}
    return parse_params(resolve(read_raw(Path("params.yaml")), "test", {"open_run": {"batch": batch}, "mine": {"windows": windows}, "select": section}))


def fill(store: Store, batch: str, degrees: list[int], all_degrees: list[int], encoders: tuple[str, ...] = ("semantic", "pattern", "caption")) -> None:
    """Pictures by angle, and the neighbours that `mine` would have found, up to 30 degrees."""
    ids = [f"{d:03d}" for d in degrees]
    rows = [{"image_id": i, "batch": batch, "shard": f"{batch}-00000.tar", "source_uri": f"s:{i}"} for i in ids]
    store.write(store.table_path("images", batch), rows, "images")
    for encoder in encoders:
        store.write_embeddings(encoder, f"{batch}-00000.tar", "r1", ids, on_circle(*degrees))
        found = []
        for q in all_degrees:
            others = sorted((t for t in all_degrees if 3 <= abs(q - t) <= 30 and (q in degrees or t in degrees)), key=lambda t: (abs(q - t), t))
            found += [{"query_image_id": f"{q:03d}", "target_image_id": f"{t:03d}", "similarity": 0.9, "rank": r} for r, t in enumerate(others)]
        store.write(store.folder("data", "neighbours", encoder, f"{batch}-00000.parquet"), found, "neighbours")


def test_a_batch_then_a_second_one(tmp_path: Path):
    store = Store(tmp_path)
    first, second = list(range(0, 100, 10)), [5, 55, 56]
    fill(store, "2026.01.04", first, first)
    report = select.run(params_for("2026.01.04"), store)
    rows = store.read_table("pairs").to_pylist()
    assert report.written == len(rows) == report.new > 10
    assert report.read == len(rows) + report.dropped["over_quota"]
    for row in rows:
        assert row["pair_id"] == stable_id(row["query_image_id"], row["target_image_id"])
        assert row["negative_image_ids"][0] == row["query_image_id"] and row["target_image_id"] not in row["negative_image_ids"]
        assert len(row["negative_image_ids"]) == len(row["negative_similarity"]) == len(set(row["negative_image_ids"]))
        assert row["negative_similarity"][0] == row["similarity_semantic"] and row["mined_by"] == ["semantic", "pattern", "caption"]
    fill(store, "2026.01.11", second, first + second)
    again = select.run(params_for("2026.01.11"), store)
    made = store.read_table("pairs").to_pylist()
    assert again.reused == report.written and again.new == len(made) - len(rows) > 0
    assert len({r["pair_id"] for r in made}) == len(made)
    for end in ("query_image_id", "target_image_id"):
        assert max(sum(r[end] == f"{d:03d}" for r in made) for d in first + second) <= 2
    assert {"005", "055", "056"} & {r["query_image_id"] for r in made if r["batch"] == "2026.01.11"}
    before = store.table_path("pairs", "2026.01.11").read_bytes(), again.figures
    assert select.run(params_for("2026.01.11"), store).figures == before[1]  # finished: read back, not made again
    store.table_path("pairs", "2026.01.11").unlink()
    select.run(params_for("2026.01.11"), store)
    assert store.table_path("pairs", "2026.01.11").read_bytes() == before[0]


def test_a_week_reads_the_vectors_of_the_pictures_that_it_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the earlier tables and vectors it takes what its candidates and their neighbours name, and the pairs are those of reading all."""
    store = Store(tmp_path)
    first, second = [0, 5, 10, 100, 105, 110, 200, 210], [3, 8]  # the new ones lie near three of the old
    fill(store, "2026.01.04", first, first)
    select.run(params_for("2026.01.04"), store)
    fill(store, "2026.01.11", second, first + second)
    asked: list[set[str]] = []
    read = Store.read_embeddings

    def watched(self: Store, encoder: str, shards: object = None, *, wanted: set[str] | None = None, **more: object) -> object:
        if wanted is not None:
            asked.append(set(wanted))
        return read(self, encoder, shards, wanted=wanted, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "read_embeddings", watched)
    select.run(params_for("2026.01.11"), store)
    assert asked and set().union(*asked) <= {f"{d:03d}" for d in (0, 5, 10, 3, 8)}
    path = store.table_path("pairs", "2026.01.11")
    lean = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(Store, "read_embeddings", lambda self, encoder, shards=None, *, wanted=None, **more: read(self, encoder, shards, **more))
    select.run(params_for("2026.01.11"), store)
    assert path.read_bytes() == lean and store.read(path, "pairs").num_rows > 0


def test_the_yield_of_each_encoder_is_reported_a_new_picture(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, "2026.01.04", [0, 10, 20, 90], [0, 10, 20, 90])  # of four pictures three have two neighbours each
    path = store.folder("data", "neighbours", "pattern", "2026.01.04-00000.parquet")
    store.write(path, store.read(path, "neighbours").slice(0, 1), "neighbours")
    figures = select.run(params_for("2026.01.04"), store).figures
    wanted = {"yield_semantic": 1.5, "yield_pattern": 0.25, "yield_caption": 1.5, "encoder_yield_lowest": 0.25}
    assert {k: v for k, v in figures.items() if "yield" in k} == wanted


def test_bands_take_pairs_from_the_whole_window(tmp_path: Path):
    ranks = []
    for name, changes in (("nearest", {"agreement": "rank"}), ("bands", {"bands": [1, 1, 1]}), ("cosines", {"bands": [1, 1], "bands_by": "similarity"})):
        store = Store(tmp_path / name)
        degrees = list(range(0, 100, 5))
        fill(store, "2026.01.04", degrees, degrees)
        report = select.run(params_for("2026.01.04", pairs_per_query=1, pairs_per_target=5, **changes), store)
        ranks.append(float(np.mean(store.read_table("pairs").column("rank").to_numpy())))
        assert report.written == 20
    assert ranks[0] < 1 and min(ranks[1:]) > ranks[0] + 1.5


def test_a_target_that_one_encoder_holds_for_a_copy_of_the_query_is_left_out_on_request(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, "2026.01.04", [0, 10, 20], [0, 10, 20])
    store.write_embeddings("pattern", "2026.01.04-00000.tar", "r1", ["000", "010", "020"], on_circle(0, 1, 20))
    report = select.run(params_for("2026.01.04", drop_query_copies=True, both_directions=True, pairs_per_source=5, negative_margin=0.1), store)
    pairs = {(r["query_image_id"], r["target_image_id"]) for r in store.read_table("pairs").to_pylist()}
    assert report.dropped["copy_of_query"] == 2 and pairs == {("000", "020"), ("020", "000"), ("010", "020"), ("020", "010")}
    assert all({"000", "010"} - set(r["negative_image_ids"]) for r in store.read_table("pairs").to_pylist())


def test_a_similarity_that_no_vector_gives_is_null(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, "2026.01.04", [0, 10], [0, 10], encoders=("semantic", "pattern"))
    store.write(store.folder("data", "neighbours", "caption", "2026.01.04-00000.parquet"), [], "neighbours")
    select.run(params_for("2026.01.04"), store)
    row = store.read_table("pairs").to_pylist()[0]
    assert row["similarity_caption"] is None and row["similarity_pattern"] == pytest.approx(0.985, abs=1e-3)
    assert row["negative_image_ids"] == [row["query_image_id"]]  # no mined one: the pair is kept all the same


def test_the_captions_fit_is_measured_on_the_new_pictures(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, "2026.01.04", [0, 10], [0, 10])
    assert select.run(params_for("2026.01.04"), store).figures["median_caption_cosine_new"] == pytest.approx(1, abs=1e-3)
    fill(store, "2026.01.11", [20, 30], [0, 10, 20, 30])
    store.write_embeddings("caption", "2026.01.11-00000.tar", "r1", ["020", "030"], on_circle(80, 90))  # shuffled
    assert select.run(params_for("2026.01.11"), store).figures["median_caption_cosine_new"] == pytest.approx(0.5, abs=1e-2)


def test_select_before_mine_says_so(tmp_path: Path):
    with pytest.raises(DataError, match="mine semantic"):
        select.run(params_for("2026.01.04"), Store(tmp_path))
