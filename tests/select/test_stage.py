"""Selecting pairs: quotas, order, negatives with the query first; nothing that is published comes again."""

import hashlib
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import ENCODER_ROLES, Params, SelectConfig, parse_params, read_raw, resolve
from tasks.errors import DataError
from tasks.names import stable_id
from tasks.select import stage as select
from tasks.select.candidates import ABSENT, Candidates, Mined, band_of, in_order, over_bands, tiers, unite
from tasks.select.negatives import Retrieved, Vectors, hard_negatives
from tasks.select.quotas import QUOTAS, Chosen, within_quotas
from tasks.store import Store
from tasks.store.id_order import encode_ids, id_order, index_in_ids

NO_QUOTAS = SelectConfig(pairs_per_query=10_000, pairs_per_target=10_000)
Ranks = dict[str, int]
pairs_of_letters = st.lists(
    st.sampled_from([a + b for a, b in itertools.permutations("abcdef", 2)]), unique=True, max_size=30
)


def table_of(
    rows: list[tuple[str, str, Ranks]], reverse: dict[int, Ranks] | None = None, cosines: dict[str, float] | None = None
) -> Candidates:
    """Candidates (query, target, encoder -> rank); `reverse`: number of a row -> ranks of its other direction;
    `cosines`: encoder -> of all rows.
    """
    names = pa.array(sorted({i for q, t, _ in rows for i in (q, t)}), pa.string())
    number = {name: n for n, name in enumerate(names.to_pylist())}
    queries, targets = (np.array([number[r[end]] for r in rows], np.int32) for end in (0, 1))
    ranks, back = (
        np.array([[of.get(e, ABSENT) for e in ENCODER_ROLES] for of in some], np.int32).reshape(-1, 3)
        for some in ([r[2] for r in rows], [(reverse or {}).get(n, {}) for n in range(len(rows))])
    )
    similarities = None if cosines is None else np.array([[cosines.get(e, np.nan) for e in ENCODER_ROLES]] * len(rows))
    return Candidates(names, queries, targets, ranks, back, similarities)


def rows_of(c: Candidates) -> list[tuple[str, str, Ranks]]:
    """The inverse of `table_of`."""
    names = c.names.to_pylist()
    ranks = [{e: r for e, r in zip(ENCODER_ROLES, row, strict=True) if r != ABSENT} for row in c.ranks.tolist()]
    return [(names[q], names[t], of) for q, t, of in zip(c.queries.tolist(), c.targets.tolist(), ranks, strict=True)]


def pairs_of(c: Candidates) -> list[tuple[str, str]]:
    return [(q, t) for q, t, _ in rows_of(c)]


def candidates(names: list[str]) -> Candidates:
    return table_of([(n[0], n[1], {"semantic": i % 5}) for i, n in enumerate(names)])


def shuffled(c: Candidates, chance: random.Random) -> Candidates:
    return c.take(np.array(chance.sample(range(len(c)), len(c)), np.int64))


def chosen(
    c: Candidates, published: list[tuple[str, str]], config: SelectConfig, sources: dict[str, str] | None = None
) -> Chosen:
    """`within_quotas` with names for numbers."""
    ends = [pa.chunked_array([pa.array([p[end] for p in published], pa.string())]) for end in (0, 1)]
    queries, targets = (index_in_ids(column, c.names) for column in ends)
    numbers = (
        None if sources is None else np.array([["one", "two"].index(sources[i]) for i in c.names.to_pylist()], np.int64)
    )
    return within_quotas(c, (queries, targets), config, None, numbers)


def decided(c: Candidates, *more: object) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
    """Pairs taken, and (query, target, quota) left; in order of name."""
    found = chosen(c, *more)  # type: ignore[arg-type]
    left = [
        (q, t, QUOTAS[why]) for (q, t), why in zip(pairs_of(c.take(found.left)), found.reasons.tolist(), strict=True)
    ]
    return sorted(pairs_of(found.taken)), sorted(left)


def test_strings_become_numbers_in_their_order_and_chunks_do_not_show():
    one = pa.chunked_array([pa.array(["d", "b"]), pa.array(["b", "a"])])
    two = pa.chunked_array([pa.array(["c", "d"])]).dictionary_encode()
    # what a filter leaves out is not named
    names, (first, second) = encode_ids([one, two.filter(pa.array([True, False]))])
    assert names.to_pylist() == ["a", "b", "c", "d"] and first.tolist() == [3, 1, 1, 0] and second.tolist() == [2]
    assert index_in_ids(one, pa.array(["b", "c"])).tolist() == [-1, 0, 0, -1]
    assert [len(x) for x in (encode_ids([])[0], *encode_ids([one.slice(0, 0)])[1])] == [0, 0]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.one_of(st.text(max_size=12), st.sampled_from(["same prefix", "same prefix a", "same pre", "same pre\0"])),
        max_size=60,
    ),
    st.integers(0, 3),
    st.booleans(),
)
def test_strings_are_sorted_by_their_bytes_as_arrow_sorts_them(some: list[str], cut: int, are_hashes: bool):
    strings = (
        [hashlib.sha256(s.encode("utf-8", "replace")).hexdigest() for s in some] * 2
        if are_hashes
        else [s.encode("utf-8", "replace").decode() for s in some]
    )
    strings += [f"{n:08d}" for n in range(100)]  # so that equal beginnings are few
    column = pa.array(strings, pa.string()).slice(cut)
    assert column.take(pa.array(id_order(column))).to_pylist() == sorted(column.to_pylist(), key=str.encode)


def test_unites_the_encoders_with_provenance():
    def mined(*rows: tuple[int, int, int]) -> Mined:
        queries, targets, ranks = (np.array(x, np.int32) for x in zip(*rows, strict=True))
        return Mined(queries, targets, np.full(len(rows), 0.9, np.float32), ranks)

    found = unite(
        pa.array(["a", "b"]), {"caption": mined((0, 1, 4)), "semantic": mined((1, 0, 2), (0, 1, 0), (0, 0, 0))}
    )
    there, back = {"semantic": 0, "caption": 4}, {"semantic": 2}
    assert rows_of(found) == [("a", "b", there), ("b", "a", back)]  # no image is its own target
    assert [of for *_, of in rows_of(found.mirrored())] == [{"semantic": 2, "caption": 4}, there]
    assert found.reverse_ranks.tolist() == found.ranks[::-1].tolist()


def test_agreement_of_encoders_comes_first():
    all_first = {"semantic": 0, "pattern": 0, "caption": 0}
    some = table_of(
        [("g", "h", {"caption": 9}), ("e", "f", {"caption": 0}), ("c", "d", all_first), ("a", "b", all_first)],
        {3: all_first},
    )
    assert tiers(some).tolist() == [23, 10, 4, 0]
    assert in_order(some, seed=0).tolist() == [3, 2, 1, 0]


@settings(max_examples=60, deadline=None)
@given(
    pairs_of_letters,
    st.integers(0, 99),
    st.integers(1, 3),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 9)),
    st.randoms(),
)
def test_quotas_hold_and_the_order_of_inputs_does_not_matter(
    names: list[str], seed: int, per_query: int, per_target: int, per_batch: int | None, chance: random.Random
):
    config = SelectConfig(pairs_per_query=per_query, pairs_per_target=per_target, pairs_per_batch=per_batch)
    some, published = candidates(names), [("a", "b"), ("a", "c")]
    other = shuffled(some, chance)
    made, left = decided(some.take(in_order(some, seed)), published, config)
    assert decided(other.take(in_order(other, seed)), published, config) == (made, left)
    assert not set(made) & set(published)
    for end, most in ((0, per_query), (1, per_target)):
        for letter in "abcdef":
            assert sum(p[end] == letter for p in made) <= max(0, most - sum(p[end] == letter for p in published))
    assert per_batch is None or len(made) <= per_batch
    assert len(made) + len(left) == len([n for n in names if n not in ("ab", "ac")])


encoders_of_pairs = st.lists(st.sets(st.sampled_from(ENCODER_ROLES), min_size=1), min_size=30, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    pairs_of_letters,
    encoders_of_pairs,
    st.integers(0, 9),
    st.integers(0, 6),
    st.integers(1, 6),
    st.integers(1, 3),
    st.booleans(),
    st.randoms(),
)
def test_no_encoder_and_no_source_brings_more_and_both_directions_come_or_neither(
    names: list[str],
    mined_by: list[set[str]],
    seed: int,
    semantic: int,
    per_source: int,
    per_query: int,
    both: bool,
    chance: random.Random,
):
    quotas = {
        "pairs_per_query": per_query,
        "pairs_per_encoder": {"semantic": semantic},
        "pairs_per_source": per_source,
        "pairs_per_batch": 13,
    }
    config = SelectConfig(**quotas, pairs_per_target=3, both_directions=both)
    sources = {letter: "one" if letter < "d" else "two" for letter in "abcdef"}
    some = table_of([(n[0], n[1], dict.fromkeys(mined, 0)) for n, mined in zip(names, mined_by, strict=False)])
    published = [("a", "b"), ("c", "d")]
    found = chosen(some.take(in_order(some, seed)), published, config, sources)
    other = shuffled(some, chance)
    assert decided(other.take(in_order(other, seed)), published, config, sources) == decided(
        some.take(in_order(some, seed)), published, config, sources
    )
    made = set(pairs_of(found.taken))
    # what is published stays, and does not come again
    assert len(made) == len(found.taken) <= 13 and not made & set(published)
    assert int(found.taken.mined_by[:, 0].sum()) <= semantic
    assert max(Counter(sources[q] for q, _ in made).values(), default=0) <= per_source
    assert max(Counter(q for q, _ in [*made, *published]).values()) <= per_query
    assert max(Counter(t for _, t in [*made, *published]).values()) <= 3
    assert not both or all((t, q) in made | set(published) for q, t in made)


@settings(max_examples=60, deadline=None)
@given(pairs_of_letters, st.integers(0, 9), st.floats(0, 1), st.randoms())
def test_at_most_a_share_of_pairs_ends_at_the_query_s_nearest_image(
    names: list[str], seed: int, share: float, chance: random.Random
):
    config = SelectConfig(pairs_per_query=9, pairs_per_target=9, nearest_share=share)
    some = table_of(
        [
            (n[0], n[1], {"semantic": chance.randrange(2)} if chance.random() < 0.8 else {"pattern": 0})
            for n in sorted(names)
        ]
    )
    other = shuffled(some, chance)
    found = chosen(some.take(in_order(some, seed)), [], config)
    assert decided(other.take(in_order(other, seed)), [], config) == decided(
        some.take(in_order(some, seed)), [], config
    )
    nearest = int((found.taken.ranks[:, 0] == 0).sum())
    assert nearest <= share * len(found.taken) + 1e-9 or share == 1
    left = some.take(in_order(some, seed)).take(found.left)
    assert (left.ranks[:, 0] == 0).all() and {QUOTAS[r] for r in found.reasons.tolist()} <= {"nearest_share"}
    assert len(found.taken) - nearest == int((some.ranks[:, 0] != 0).sum())  # the others are not touched


def test_the_other_direction_is_a_pair_of_its_own_mined_by_the_same_encoders():
    there, alone = {"semantic": 0, "caption": 3}, {"pattern": 1}
    some = table_of([("a", "b", there), ("c", "d", alone)], {0: {"semantic": 2}})
    config = SelectConfig(pairs_per_query=1, pairs_per_target=1, both_directions=True)
    taken = chosen(some, [], config).taken
    assert {(q, t): ranks for q, t, ranks in rows_of(taken)} == {
        ("a", "b"): there,
        ("b", "a"): {"semantic": 2, "caption": 3},
        ("c", "d"): alone,
        ("d", "c"): alone,
    }
    assert taken.pair_ids.tolist() == [stable_id(q, t).encode() for q, t in pairs_of(taken)]
    made, left = decided(table_of([("a", "b", there), ("b", "e", {"semantic": 1})]), [], config)
    assert len(made) == 2 and left == [("b", "e", "pairs_per_query")]


@settings(max_examples=40, deadline=None)
@given(pairs_of_letters, st.integers(0, 30), st.integers(0, 9))
def test_without_quotas_the_union_over_batches_is_the_whole(names: list[str], cut: int, seed: int):
    def made(some: list[str], published: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return decided(c.take(in_order(c, seed)), published, NO_QUOTAS)[0] if len(c := candidates(some)) else []

    first = made(names[:cut], [])
    second = made(names, first)
    assert {*first, *second} == set(made(names, [])) and not set(first) & set(second)


WINDOWS = {"semantic": (0.8, 0.9), "caption": (0.5, 1.0)}


CASES = [(0.899, 0, 0, 0), (0.86, 3, 0, 1), (0.84, 6, 1, 1), (0.801, 11, 2, 2), (0.8, 40, 2, 2)]


@pytest.mark.parametrize(("similarity", "rank", "by_rank", "by_similarity"), CASES)
def test_bands_part_the_ranks_or_the_window(similarity: float, rank: int, by_rank: int, by_similarity: int):
    # the one that ranks it best counts
    c = table_of([("a", "b", {"semantic": rank, "caption": 50})], cosines={"semantic": similarity, "caption": 0.99})
    assert band_of(c, 3, by="rank", neighbours=12, windows=WINDOWS).tolist() == [by_rank]
    assert band_of(c, 3, by="similarity", neighbours=12, windows=WINDOWS).tolist() == [by_similarity]


def fan(queries: int, ranks: int) -> Candidates:
    """Each query with targets of its own at ranks 0, 1, ..."""
    return table_of([(f"q{q}", f"t{q}-{r}", {"semantic": r}) for q in range(queries) for r in range(ranks)])


def test_draws_fall_over_the_bands_by_their_weights_and_each_query_takes_them_in_turn():
    some = fan(400, 12)
    thirds = some.ranks[:, 0].astype(np.int64) // 4
    order = over_bands(some, 0, (2, 1, 1), thirds)
    assert len(np.unique(some.queries[order[:400]])) == 400  # everyone's first before anyone's second
    share = [np.mean(thirds[order[:400]] == b) for b in range(3)]
    assert share == pytest.approx([0.5, 0.25, 0.25], abs=0.08)
    names = some.names.to_pylist()
    for query in ("q0", "q7", "q99"):
        drawn = thirds[order[some.queries[order] == names.index(query)]].tolist()
        assert sorted(drawn[:3]) == [0, 1, 2] and drawn[3:6] == drawn[:3]
    ranks = [
        r
        for r, third in zip(some.ranks[order[:400], 0].tolist(), thirds[order[:400]].tolist(), strict=True)
        if third == 0
    ]
    assert max(ranks.count(r) for r in range(4)) < 0.4 * len(ranks)  # inside a band the nearest is nothing special
    assert over_bands(some, 1, (2, 1, 1), thirds)[:400].tolist() != order[:400].tolist()


def test_inside_a_band_what_more_encoders_mined_comes_first():
    some = table_of(
        [("a", "b", {"semantic": 0}), ("a", "c", {"semantic": 3, "pattern": 2}), ("a", "d", {"pattern": 1})]
    )
    assert over_bands(some, 0, (1,), np.zeros(3, np.int64))[0] == 1


@settings(max_examples=60, deadline=None)
@given(pairs_of_letters, st.integers(0, 99), st.lists(st.floats(0.1, 5), min_size=1, max_size=4), st.randoms())
def test_drawing_depends_on_the_seed_and_the_set_alone(
    names: list[str], seed: int, weights: list[float], chance: random.Random
):
    def drawn(c: Candidates) -> list[tuple[str, str]]:
        return pairs_of(c.take(over_bands(c, seed, weights, c.ranks.min(axis=1, initial=0) % len(weights))))

    some = candidates(names)
    order = drawn(some)
    assert drawn(shuffled(some, chance)) == order
    assert sorted(order) == sorted(pairs_of(some))
    turns = Counter[str]()
    turn_of = []
    for query, _ in order:
        turn_of.append(turns[query])
        turns[query] += 1
    assert turn_of == sorted(turn_of)


def on_circle(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)


def negatives_of(
    ranks: Ranks,
    retrieved: dict[str, dict[str, list[str]]],
    tables: dict[str, tuple[list[str], np.ndarray]],
    limits: tuple[float, float, float],
    **more: Any,
) -> tuple[list[tuple[str, float]], list[str]]:
    """`hard_negatives` of the one pair of the first two ids: (id, similarity) by preference, and the ids left out as
    copies.
    """
    ids = next(iter(tables.values()))[0]
    names = pa.array(
        sorted({*ids, *(i for of in retrieved.values() for q, ts in of.items() for i in (q, *ts))}), pa.string()
    )
    number = {name: n for n, name in enumerate(names.to_pylist())}
    c = table_of([(ids[0], ids[1], ranks)])
    c = Candidates(names, *(np.array([number[i]], np.int32) for i in ids[:2]), c.ranks, c.reverse_ranks)
    looked_up = {}
    for encoder, of in retrieved.items():
        queries, targets = (
            np.array(x, np.int32)
            for x in zip(*((number[q], number[t]) for q, ts in of.items() for t in ts), strict=True)
        )
        looked_up[encoder] = Retrieved(
            Mined(queries, targets, np.zeros(len(queries), np.float32), np.zeros(len(queries), np.int32)), len(names)
        )
    vectors = Vectors(names, {e: (pa.array(of, pa.string()), rows) for e, (of, rows) in tables.items()})
    found = hard_negatives(c, looked_up, vectors, limits=np.array(limits), **more)
    assert not found.pairs.any() and not found.copy_pairs.any()
    names_of = names.to_pylist()
    return [(names_of[i], s) for i, s in zip(found.images.tolist(), found.similarities.tolist(), strict=True)], [
        names_of[i] for i in found.copies.tolist()
    ]


def test_negatives_are_the_retrieved_nearest_to_the_target_but_no_copy_of_it():
    ids = ["query", "target", "copy", "near", "far", "further"]
    retrieved = {
        "semantic": {"query": ["target", "copy", "far"], "target": ["query", "near", "further", "copy"]},
        "caption": {"query": ["unasked"]},
    }
    tables = {"semantic": (ids, on_circle(0, 40, 41, 60, 80, 110))}
    negatives, copies = negatives_of({"semantic": 1}, retrieved, tables, (0.99, 0.99, 0.99), count=2)
    assert copies == ["copy"]
    assert [i for i, _ in negatives] == ["near", "far"]
    assert [s for _, s in negatives] == pytest.approx([np.cos(np.deg2rad(20)), np.cos(np.deg2rad(40))], abs=2e-3)


def test_encoders_take_turns_and_the_first_that_proposes_a_image_has_it():
    ids = ["query", "target", "a", "b", "c"]
    tables = {"semantic": (ids, on_circle(0, 40, 60, 80, 100)), "pattern": (ids, on_circle(0, 40, 90, 45, 50))}
    retrieved = {"semantic": {"query": ["a", "b"]}, "pattern": {"target": ["b", "c"]}}
    negatives, _ = negatives_of({"semantic": 0, "pattern": 0}, retrieved, tables, (2, 2, 2), count=None)
    assert [i for i, _ in negatives] == ["a", "c", "b"]  # a and b are the semantic's, c the pattern's; b was its second
    assert dict(negatives)["b"] == pytest.approx(np.cos(np.deg2rad(40)), abs=2e-3)


def test_a_margin_is_measured_in_the_distance_of_query_and_target_and_copies_of_the_query_stay_out():
    ids = ["query", "target", "twin", "near", "far"]
    tables = {"semantic": (ids, on_circle(0, 40, 1, 60, 85)), "pattern": (ids, on_circle(0, 40, 80, 60, 85))}

    def mined(**settings: object) -> tuple[list[str], list[str]]:
        negatives, copies = negatives_of(
            {"semantic": 0},
            {"semantic": {"query": ["twin", "near", "far"]}},
            tables,
            (0.99, 0.99, 0.99),
            count=5,
            **settings,
        )
        return [i for i, _ in negatives], copies

    assert mined() == (["near", "twin", "far"], [])
    assert mined(query_copies=False) == (["near", "far"], ["twin"])
    # 1 - cos 20 is a quarter of 1 - cos 40, 1 - cos 39 nearly the whole
    assert mined(margin=0.5) == (["twin", "far"], ["near"])
    assert mined(margin=1.0) == (["far"], ["near", "twin"])
    assert mined(margin=0.2) == mined()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.floats(0, 1.5))
def test_the_margin_holds_for_every_negative(seed: int, margin: float):
    rng = np.random.default_rng(seed)
    ids = [f"{i:02d}" for i in range(20)]
    tables = {e: (ids, on_circle(*rng.uniform(0, 180, 20))) for e in ("semantic", "pattern")}
    retrieved, limits = {"semantic": {"00": ids[2:12]}, "pattern": {"01": ids[8:]}}, (0.99, 0.98, 1.0)
    negatives, copies = negatives_of(
        {"semantic": 0, "pattern": 1}, retrieved, tables, limits, count=30, margin=margin, query_copies=False
    )
    assert {i for i, _ in negatives} | set(copies) == set(ids[2:]) and not {i for i, _ in negatives} & set(copies)

    def cosine(encoder: str, a: str, b: str) -> float:
        rows = tables[encoder][1].astype(np.float64)
        return float(rows[ids.index(a)] @ rows[ids.index(b)])

    for i, similarity in negatives:
        encoder = "semantic" if i in ids[2:12] else "pattern"
        assert (
            similarity == pytest.approx(cosine(encoder, i, "01"), abs=1e-9)
            and 1 - similarity >= margin * (1 - cosine(encoder, "00", "01")) - 1e-9
        )
        for limit, e in zip(limits, ("semantic", "pattern"), strict=False):
            assert max(cosine(e, i, "00"), cosine(e, i, "01")) < limit


# --- the stage, on three batches of a circle -------------------------------------------------------------------------


def params_for(batch: str, **changes: object) -> Params:
    windows = {e: {"low": 0.8, "high": 0.999} for e in ("semantic", "pattern", "caption")}
    section = {"pairs_per_query": 2, "pairs_per_target": 2, "pairs_per_batch": None, "nearest_share": 1.0, **changes}
    return parse_params(
        resolve(
            read_raw(Path("params.yaml")),
            "test",
            {"open_run": {"batch": batch}, "mine": {"windows": windows}, "select": section},
        )
    )


def fill(
    store: Store,
    batch: str,
    degrees: list[int],
    all_degrees: list[int],
    encoders: tuple[str, ...] = ("semantic", "pattern", "caption"),
) -> None:
    """Images by angle, and the neighbours that `mine` would have found, up to 30 degrees."""
    ids = [f"{d:03d}" for d in degrees]
    rows = [{"image_id": i, "batch": batch, "shard": f"{batch}-00000.tar", "source_uri": f"s:{i}"} for i in ids]
    store.write(store.table_path("images", batch), rows, "images")
    for encoder in encoders:
        store.write_embeddings(encoder, f"{batch}-00000.tar", "r1", ids, on_circle(*degrees))
        found = []
        for q in all_degrees:
            others = sorted(
                (t for t in all_degrees if 3 <= abs(q - t) <= 30 and (q in degrees or t in degrees)),
                key=lambda t: (abs(q - t), t),
            )
            found += [
                {"query_image_id": f"{q:03d}", "target_image_id": f"{t:03d}", "similarity": 0.9, "rank": r}
                for r, t in enumerate(others)
            ]
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
        assert (
            row["negative_image_ids"][0] == row["query_image_id"]
            and row["target_image_id"] not in row["negative_image_ids"]
        )
        assert len(row["negative_image_ids"]) == len(row["negative_similarity"]) == len(set(row["negative_image_ids"]))
        assert row["negative_similarity"][0] == row["similarity_semantic"] and row["mined_by"] == [
            "semantic",
            "pattern",
            "caption",
        ]
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


def test_a_week_reads_the_vectors_of_the_images_that_it_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the earlier tables and vectors it takes what its candidates and their neighbours name, and the pairs are those
    of reading all.
    """
    store = Store(tmp_path)
    first, second = [0, 5, 10, 100, 105, 110, 200, 210], [3, 8]  # the new ones lie near three of the old
    fill(store, "2026.01.04", first, first)
    select.run(params_for("2026.01.04"), store)
    fill(store, "2026.01.11", second, first + second)
    asked: list[set[str]] = []
    read = Store.read_wanted

    def watched(self: Store, encoder: str, wanted: pa.Array) -> tuple[pa.Array, np.ndarray]:
        asked.append(set(wanted.to_pylist()))
        return read(self, encoder, wanted)

    monkeypatch.setattr(Store, "read_wanted", watched)
    select.run(params_for("2026.01.11"), store)
    assert asked and set().union(*asked) <= {f"{d:03d}" for d in (0, 5, 10, 3, 8)}
    path = store.table_path("pairs", "2026.01.11")
    lean = path.read_bytes()
    path.unlink()

    def everything(self: Store, encoder: str, wanted: pa.Array) -> tuple[pa.Array, np.ndarray]:
        ids, vectors, _ = self.read_embeddings(encoder)
        return pa.array(ids, pa.string()), vectors

    monkeypatch.setattr(Store, "read_wanted", everything)
    select.run(params_for("2026.01.11"), store)
    assert path.read_bytes() == lean and store.read(path, "pairs").num_rows > 0


def test_the_yield_of_each_encoder_is_reported_a_new_image(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, "2026.01.04", [0, 10, 20, 90], [0, 10, 20, 90])  # of four images three have two neighbours each
    path = store.folder("data", "neighbours", "pattern", "2026.01.04-00000.parquet")
    store.write(path, store.read(path, "neighbours").slice(0, 1), "neighbours")
    figures = select.run(params_for("2026.01.04"), store).figures
    wanted = {"yield_semantic": 1.5, "yield_pattern": 0.25, "yield_caption": 1.5, "encoder_yield_lowest": 0.25}
    assert {k: v for k, v in figures.items() if "yield" in k} == wanted


def test_bands_take_pairs_from_the_whole_window(tmp_path: Path):
    ranks = []
    for name, changes in (
        ("nearest", {"agreement": "rank"}),
        ("bands", {"bands": [1, 1, 1]}),
        ("cosines", {"bands": [1, 1], "bands_by": "similarity"}),
    ):
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
    report = select.run(
        params_for("2026.01.04", drop_query_copies=True, both_directions=True, pairs_per_source=5, negative_margin=0.1),
        store,
    )
    pairs = {(r["query_image_id"], r["target_image_id"]) for r in store.read_table("pairs").to_pylist()}
    assert report.dropped["copy_of_query"] == 2 and pairs == {
        ("000", "020"),
        ("020", "000"),
        ("010", "020"),
        ("020", "010"),
    }
    assert all({"000", "010"} - set(r["negative_image_ids"]) for r in store.read_table("pairs").to_pylist())


def test_a_similarity_that_no_vector_gives_is_null(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, "2026.01.04", [0, 10], [0, 10], encoders=("semantic", "pattern"))
    store.write(store.folder("data", "neighbours", "caption", "2026.01.04-00000.parquet"), [], "neighbours")
    select.run(params_for("2026.01.04"), store)
    row = store.read_table("pairs").to_pylist()[0]
    assert row["similarity_caption"] is None and row["similarity_pattern"] == pytest.approx(0.985, abs=1e-3)
    assert row["negative_image_ids"] == [row["query_image_id"]]  # no mined one: the pair is kept all the same


def test_the_captions_fit_is_measured_on_the_new_images(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, "2026.01.04", [0, 10], [0, 10])
    assert select.run(params_for("2026.01.04"), store).figures["median_caption_cosine_new"] == pytest.approx(
        1, abs=1e-3
    )
    fill(store, "2026.01.11", [20, 30], [0, 10, 20, 30])
    store.write_embeddings("caption", "2026.01.11-00000.tar", "r1", ["020", "030"], on_circle(80, 90))  # shuffled
    assert select.run(params_for("2026.01.11"), store).figures["median_caption_cosine_new"] == pytest.approx(
        0.5, abs=1e-2
    )


def test_select_before_mine_says_so(tmp_path: Path):
    with pytest.raises(DataError, match="mine semantic"):
        select.run(params_for("2026.01.04"), Store(tmp_path))
