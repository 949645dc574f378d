"""Takedown: images on the takedown list leave every table, and the places that they leave are filled again."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.caption.stage import withdraw_captioned
from tasks.config import ENCODER_ROLES, Params, Window, parse_params, read_raw, resolve
from tasks.embed import stage as embed
from tasks.embed.withdraw import withdraw_vectors
from tasks.errors import ConfigError
from tasks.fingerprints.takedown import taken_down
from tasks.judge.stage import withdraw_triplets
from tasks.knn.search import neighbours_in_window
from tasks.knn.spec import SearchSpec
from tasks.mine import stage as mine
from tasks.names import stable_id
from tasks.select import stage as select
from tasks.store import Store

BATCHES = ("2026.01.04", "2026.01.11", "2026.01.18")
K = 4


def name_of(n: int) -> str:
    return hashlib.sha256(str(n).encode()).hexdigest()


def params_for(batch: str, takedown_list: Path | None = None) -> Params:
    windows = {e: {"low": 0.5, "high": 0.999} for e in ENCODER_ROLES}
    changes = {
        "open_run": {"batch": batch},
        "ingest": {"takedown": str(takedown_list) if takedown_list else None},
        "mine": {"windows": windows, "neighbours": K},
        "select": {"pairs_per_query": 2, "pairs_per_target": 2, "pairs_per_batch": None, "negatives": 3},
    }
    return parse_params(resolve(read_raw(Path("params.yaml")), "test", changes))


def vectors_of(seed: int, n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for role in ENCODER_ROLES:
        rows = rng.normal(size=(3, 6))[rng.integers(0, 3, n)] + 0.5 * rng.normal(size=(n, 6))
        out[role] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return out


def week(store: Store, params: Params, numbers: list[int], vectors: dict[str, np.ndarray]) -> None:
    """A batch's images with their vectors, mined and selected."""
    batch = str(params.open_run.batch)
    ids = [name_of(n) for n in numbers]
    rows = [
        {
            "image_id": i,
            "batch": batch,
            "shard": f"{batch}-00000.tar",
            "source_uri": "s:x",
            "source_sha256": name_of(10_000 + n),
        }
        for i, n in zip(ids, numbers, strict=True)
    ]
    store.write(store.table_path("images", batch), rows, "images")
    for role in ENCODER_ROLES:
        store.write_embeddings(role, f"{batch}-00000.tar", "r1", ids, vectors[role][numbers])
        withdraw_vectors(store, role, taken_down(params, store))
        mine.run(params, store, role)
    select.run(params, store)


def pairs_of(store: Store) -> dict[str, dict[str, object]]:
    return {r["pair_id"]: r for r in store.read_table("pairs").to_pylist()}


def mined(store: Store, role: str) -> set[tuple[str, str]]:
    table = store.read(sorted(store.folder("data", "neighbours", role).glob("*.parquet")), "neighbours").to_pydict()
    rows = list(zip(table["query_image_id"], table["target_image_id"], strict=True))
    assert len(rows) == len(set(rows))
    return set(rows)


def content(store: Store) -> dict[str, bytes]:
    return {p.relative_to(store.root).as_posix(): p.read_bytes() for p in store.root.rglob("*") if p.is_file()}


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 9999), st.sets(st.integers(0, 29), min_size=1, max_size=5), st.booleans(), st.integers(0, 4))
def test_images_taken_down_are_in_no_table_and_their_places_are_filled(
    tmp_path_factory: pytest.TempPathFactory, seed: int, gone: set[int], by_source: bool, more: int
):
    root = tmp_path_factory.mktemp("runs")
    store, vectors = Store(root / "store"), vectors_of(seed, 40)
    week(store, params_for(BATCHES[0]), list(range(20)), vectors)
    week(store, params_for(BATCHES[1]), list(range(20, 30)), vectors)
    before, removed = pairs_of(store), {name_of(n) for n in gone}
    takedown_list = root / "takedown.txt"
    takedown_list.write_text(
        "".join(f"{name_of(10_000 + n if by_source else n)},2026-01-15 # asked by the artist\n" for n in gone)
    )
    last = params_for(BATCHES[2], takedown_list)
    week(store, last, list(range(30, 30 + more)), vectors)
    assert [
        k
        for k, v in content(store).items()
        if "images" not in k and "dropped" not in k and any(i.encode() in v for i in removed)
    ] == []
    after = pairs_of(store)
    ends = {k: {r["query_image_id"], r["target_image_id"]} for k, r in before.items()}
    # no other published pair is withdrawn
    assert set(before) - set(after) == {k for k, e in ends.items() if e & removed}
    for key in set(before) & set(after):
        old, new = before[key], after[key]
        kept = [i for i in old["negative_image_ids"] if i not in removed]
        assert new["negative_image_ids"][: len(kept)] == kept and len(set(new["negative_image_ids"])) == len(
            new["negative_image_ids"]
        ) == len(new["negative_similarity"])
        assert len(new["negative_image_ids"]) <= len(old["negative_image_ids"]) and not removed & set(
            new["negative_image_ids"]
        )
    for end in ("query_image_id", "target_image_id"):
        assert max(Counter(r[end] for r in after.values()).values(), default=0) <= 2
    remaining = sorted({name_of(n) for n in range(30 + more)} - removed)
    by_name = {name_of(n): n for n in range(40)}
    for role in ENCODER_ROLES:  # the candidates are those of a corpus that never had the images
        rows = vectors[role][[by_name[i] for i in remaining]]
        query, target, _, _ = neighbours_in_window(
            rows, rows, remaining, remaining, SearchSpec(Window(low=0.5, high=0.999), K)
        )
        assert {(remaining[q], remaining[t]) for q, t in zip(query.tolist(), target.tolist(), strict=True)} <= mined(
            store, role
        )
    finished = content(store)
    for role in ENCODER_ROLES:
        mine.run(last, store, role)
    select.run(last, store)
    assert content(store) == finished  # again: nothing is left to do


def test_a_query_that_lost_its_pair_gets_another_one_and_so_do_places_of_negatives(tmp_path: Path):
    store, vectors = Store(tmp_path / "store"), vectors_of(3, 40)
    week(store, params_for(BATCHES[0]), list(range(30)), vectors)
    before = pairs_of(store)
    counts = Counter(r["target_image_id"] for r in before.values())
    victim = max(counts, key=lambda i: (counts[i], i))
    takedown_list = tmp_path / "takedown.jsonl"
    takedown_list.write_text(f'{{"sha256": "{victim}", "asked_on": "2026-01-15"}}\n')
    week(store, params_for(BATCHES[1], takedown_list), [], vectors)
    after = pairs_of(store)
    losers = {r["query_image_id"] for r in before.values() if r["target_image_id"] == victim}
    new = [after[k] for k in set(after) - set(before)]
    # where a target has room left
    assert len(losers) == 2 and losers >= {r["query_image_id"] for r in new} and 0 < len(new) <= 2
    assert all(r["batch"] == BATCHES[1] for r in new)
    places = [k for k, r in before.items() if victim in r["negative_image_ids"] and k in after]
    filled = [k for k in places if len(after[k]["negative_image_ids"]) == len(before[k]["negative_image_ids"])]
    assert places and filled
    report = select.run(params_for(BATCHES[1], takedown_list), store)
    assert report.dropped["taken_down"] == len(set(before) - set(after))


def test_captioned_rows_and_triplets_are_removed_with_their_pair_and_negatives_with_their_score(tmp_path: Path):
    store = Store(tmp_path)
    a, b, c, d = (name_of(n) for n in range(4))
    store.write(
        store.table_path("pairs", BATCHES[0]), [{"pair_id": "ab", "query_image_id": a, "target_image_id": b}], "pairs"
    )
    store.write(
        store.table_path("captioned", BATCHES[0], 0),
        [{"pair_id": p, "batch": BATCHES[0]} for p in ("ab", "ac", stable_id(b, a))],
        "captioned",
    )
    rows = [
        {
            "triplet_id": "1",
            "query_image_id": a,
            "target_image_id": b,
            "negative_image_ids": [a, c, d],
            "judge_negative": [0.1, 0.2, 0.3],
        },
        {
            "triplet_id": "2",
            "query_image_id": a,
            "target_image_id": c,
            "negative_image_ids": [a],
            "judge_negative": [0.1],
        },
    ]
    store.write(store.table_path("triplets", BATCHES[0], 0), rows, "triplets")
    assert withdraw_triplets(store, {c}) == (1, 1) and withdraw_captioned(store, {c}, BATCHES[1]) == 1
    # the second was written with caption.reverse
    assert store.read_table("captioned").column("pair_id").to_pylist() == ["ab", stable_id(b, a)]
    left = store.read_table("triplets").to_pylist()
    assert [(r["triplet_id"], r["negative_image_ids"], r["judge_negative"]) for r in left] == [
        ("1", [a, d], pytest.approx([0.1, 0.3]))
    ]
    before = content(store)
    assert (
        withdraw_triplets(store, {c}) == (0, 0)
        and withdraw_triplets(store, set()) == (0, 0)
        and content(store) == before
    )


def test_vectors_are_removed_and_a_shard_cut_off_between_its_files_is_finished(tmp_path: Path):
    store, (a, b, c) = Store(tmp_path), (name_of(n) for n in range(3))
    store.write_embeddings("semantic", "x-00000.tar", "r1", [a, b, c], np.eye(3, dtype=np.float16))
    marker = store.folder("data", "embeddings", "semantic", "x-00000.parquet")
    whole = marker.read_bytes()
    assert withdraw_vectors(store, "semantic", {b}) == 1
    marker.write_bytes(whole)  # as if it had been killed between the two files
    assert withdraw_vectors(store, "semantic", {b}) == 1 and withdraw_vectors(store, "semantic", {b}) == 0
    ids, vectors, revision = store.read_embeddings("semantic")
    assert (ids, revision) == ([a, c], "r1") and vectors.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert embed.taken_down is taken_down  # the stage reads the same takedown list


def test_a_takedown_list_that_cannot_be_read_is_an_error_not_an_empty_list(tmp_path: Path):
    with pytest.raises(ConfigError, match="takedown"):
        taken_down(params_for(BATCHES[0], tmp_path / "none.txt"), Store(tmp_path))
    (tmp_path / "l.txt").write_text(f"# {name_of(1)}\n{name_of(2).upper()}\nshort 123\n")
    with pytest.raises(ConfigError, match=r"ingest.takedown: l.txt, line 3: 'short 123' is no entry"):
        taken_down(params_for(BATCHES[0], tmp_path / "l.txt"), Store(tmp_path))
    (tmp_path / "l.txt").write_text(f"# {name_of(1)}\n{name_of(2).upper()}\n")
    assert taken_down(params_for(BATCHES[0], tmp_path / "l.txt"), Store(tmp_path)) == {name_of(2)}
    assert taken_down(params_for(BATCHES[0]), Store(tmp_path)) == set()


def test_a_takedown_list_names_images_by_source_and_by_perceptual_hash_too(tmp_path: Path):
    store = Store(tmp_path)
    flat = {n: bytes([n] * 192) for n in (10, 12, 200)}
    looks = [(1, 0xF0, flat[10]), (2, 0xF1, flat[12]), (3, 0xF1, flat[200]), (4, 0xFFFF << 40, flat[10])]
    rows = [
        {
            "image_id": name_of(n),
            "batch": BATCHES[0],
            "shard": "b-0.tar",
            "source_uri": "s:x",
            "source_sha256": name_of(100 + n),
            "phash": f"{h:016x}",
            "thumbnail": t,
        }
        for n, h, t in looks
    ]
    store.write(store.table_path("images", BATCHES[0]), rows, "images")
    for line, found in {name_of(103): {3}, f"{0xF0:016x} {flat[10].hex()}": {1, 2}, f"{0xF1:016x}": {2, 3}}.items():
        (tmp_path / "l.txt").write_text(line)
        params = params_for(BATCHES[0], tmp_path / "l.txt")
        params = params.model_copy(update={"ingest": params.ingest.model_copy(update={"blocked_distance_bits": 0})})
        assert taken_down(params, store) & {r["image_id"] for r in rows} == {name_of(n) for n in found}


def test_a_withdrawn_image_that_a_list_names_alone_is_found(tmp_path: Path):
    """The last look before a version is published: a negative stands in a list of ids and nowhere else."""
    from tasks.fingerprints.takedown import still_named

    store = Store(tmp_path)
    row = {"triplet_id": "t", "query_image_id": "q", "target_image_id": "a", "negative_image_ids": ["q", "gone"]}
    store.write(store.table_path("triplets", "2026.01.04", 0), [row], "triplets")
    assert still_named(store, {"gone"}) == ["data/triplets/2026.01.04-00000.parquet"]
    assert still_named(store, {"other"}) == []
