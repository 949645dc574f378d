"""A new encoder: its index grows beside the old one, within a budget, and takes over in one version."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import tasks.renewal.encoders
from tasks.config import Params, parse_params, read_raw, resolve
from tasks.embed import stage as embed
from tasks.embed.next_index import choose_shards
from tasks.errors import ConfigError, DataError
from tasks.fingerprints.takedown import names_any_word, published_texts
from tasks.mine import stage as mine
from tasks.publish.outcome import require_triplets
from tasks.publish.published import file_sha256
from tasks.publish.renew_run import embed_values, forecast_next
from tasks.publish.version_record import build_manifest
from tasks.renewal.encoders import count_next, is_same_encoder, spec_key, with_moved_encoders
from tasks.renewal.plan import renewed_counts
from tasks.store import Store
from tests.support.toy_encoder import ToyEncoder, fill

WEEKS = ("2026.01.04", "2026.01.11", "2026.01.18", "2026.01.25")
SHADES = ([10, 60, 110, 160], [30, 80], [50, 130], [90, 140])


def params_for(batch: str, *, following: bool = True, budget: int | None = None) -> Params:
    """Encoder `old` with its window, and `new` to follow, with another one."""
    spec = {"model": "new", "kind": "image", "window": {"low": 0.2, "high": 0.9999}, "budget": budget}
    sections: dict[str, Any] = {
        "open_run": {"batch": batch},
        "embed": {"next": {"semantic": spec} if following else None},
        "mine": {"neighbours": 50, "windows": {"semantic": {"low": 0.9, "high": 0.9999}}},
    }
    raw = resolve(read_raw(Path("params.yaml")), "test", sections)
    raw["embed"]["encoders"] = {"semantic": {"model": "old", "kind": "image"}}
    return parse_params(raw)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was encoded: (model, images)."""
    calls: list[tuple[str, int]] = []

    def load(spec: Any, *_: Any) -> ToyEncoder:
        encoder = ToyEncoder(f"{spec.model} 1")
        turn = {"old": 1.0, "new": 2.0}[spec.model]

        def encode(images: Any) -> np.ndarray:
            calls.append((spec.model, len(images)))
            angle = turn * np.array([np.asarray(i).mean() / 255 for i in images])
            return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

        encoder.encode_images = encode  # type: ignore[method-assign]
        return encoder

    monkeypatch.setattr(embed, "load_encoder", load)
    return calls


def run_week(root: Path, week: int, make: Callable[[str], Params], parts: int = 1) -> Params:
    """One run: new images, embedded and mined; returns its parameters as the stages after mine see them."""
    store = Store(root)
    for path in store.folder(".run", "renew").glob("*.json"):
        path.unlink()
    if not store.table_path("images", WEEKS[week]).exists():
        fill(store, WEEKS[week], SHADES[week], ["a"] * len(SHADES[week]), per_shard=2)
    for part in range(1, parts + 1):
        params = with_moved_encoders(make(WEEKS[week]), store)
        embed.run(params, store, "semantic", (part, parts))
    mine.run(with_moved_encoders(make(WEEKS[week]), store), store, "semantic")
    return with_moved_encoders(make(WEEKS[week]), store)


def mined(store: Store) -> dict[tuple[str, str], float]:
    files = sorted(store.folder("data", "neighbours", "semantic").glob("*.parquet"))
    rows = store.read(files, "neighbours")
    return {(r["query_image_id"], r["target_image_id"]): r["similarity"] for r in rows.to_pylist()}


@pytest.mark.parametrize("parts", [1, 2])
def test_the_old_index_is_used_until_the_new_one_is_whole(tmp_path: Path, encoded: list[tuple[str, int]], parts: int):
    run_week(tmp_path, 0, lambda batch: params_for(batch, following=False))
    store = Store(tmp_path)
    for week, (left, revision) in enumerate([(2, "old 1"), (0, "new 1"), (0, "new 1")], start=1):
        encoded.clear()
        params = run_week(tmp_path, week, lambda batch: params_for(batch, budget=3), parts)
        assert sum(n for model, n in encoded if model == "new") <= len(SHADES[week]) + 3
        assert store.read_embeddings("semantic")[2] == revision
        assert params.mine.windows["semantic"].low == (0.9 if revision == "old 1" else 0.2)
        if revision == "old 1":
            assert count_next(store, "semantic") == {"rows": 6, "stale": left, "oldest": WEEKS[0], "makers": {}}
    assert not [call for call in encoded if call[0] == "old"]  # the old encoder is needed no more

    fresh = Store(tmp_path / "fresh")
    for week in range(4):  # as if there had only been the new one
        run_week(fresh.root, week, lambda batch: as_new(params_for(batch, following=False)))
    assert mined(store) == mined(fresh) and len(mined(store)) > 0
    ids, vectors, _ = store.read_embeddings("semantic")
    of_fresh = dict(zip(*fresh.read_embeddings("semantic")[:2], strict=True))
    assert all(np.array_equal(v, of_fresh[i]) for i, v in zip(ids, vectors, strict=True)) and len(ids) == len(of_fresh)
    assert not store.folder("data", "embeddings", "semantic", "next").exists()


def as_new(params: Params) -> Params:
    """Parameters that name the new encoder and its window from the start."""
    role = "semantic"
    encoders = {role: params.embed.encoders[role].model_copy(update={"model": "new"})}
    windows = {**params.mine.windows, role: params.mine.windows[role].model_copy(update={"low": 0.2})}
    return params.model_copy(
        update={
            "embed": params.embed.model_copy(update={"encoders": encoders}),
            "mine": params.mine.model_copy(update={"windows": windows}),
        }
    )


def test_in_the_run_of_the_change_candidates_name_a_new_image(tmp_path: Path, encoded: list[tuple[str, int]]):
    run_week(tmp_path, 0, lambda batch: params_for(batch, following=False))
    run_week(tmp_path, 1, params_for)
    store = Store(tmp_path)
    new = set(store.read_table("images", ["image_id"], WEEKS[1]).column("image_id").to_pylist())
    rows = store.read(store.folder("data", "neighbours", "semantic", f"{WEEKS[1]}-00000.parquet"), "neighbours")
    assert rows.num_rows and all(new & {r["query_image_id"], r["target_image_id"]} for r in rows.to_pylist())


@pytest.mark.parametrize("killed_at", range(1, 8))
def test_a_change_that_is_killed_is_finished(
    tmp_path: Path, encoded: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, killed_at: int
):
    for name in ("calm", "killed"):
        run_week(tmp_path / name, 0, lambda batch: params_for(batch, following=False))
    run_week(tmp_path / "calm", 1, params_for)
    replace, count = os.replace, 0

    def replace_until(*args: Any) -> None:
        nonlocal count
        if "next" in str(args[0]) and str(args[0]).endswith((".parquet", ".npy")):
            count += 1
            if count == killed_at:
                raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(tasks.renewal.encoders.os, "replace", replace_until)
    try:
        run_week(tmp_path / "killed", 1, params_for)
    except KeyboardInterrupt:
        monkeypatch.setattr(tasks.renewal.encoders.os, "replace", replace)
        store = Store(tmp_path / "killed")
        for stage in (embed, mine):
            stage.run(with_moved_encoders(params_for(WEEKS[1]), store), store, "semantic")
    files = [{p.relative_to(r): p.read_bytes() for p in sorted((r / "data").rglob("*")) if p.is_file()}
             for r in (tmp_path / "calm", tmp_path / "killed")]  # fmt: skip
    assert files[0] == files[1]


def naming(store: Store, ids: list[str]) -> set[Path]:
    return {path for path, table in published_texts(store) if any(names_any_word(table, set(ids)))}


def test_an_index_that_was_given_up_is_removed_said_and_counted(tmp_path: Path, encoded: list[tuple[str, int]]):
    run_week(tmp_path, 0, lambda batch: params_for(batch, following=False))
    run_week(tmp_path, 1, lambda batch: params_for(batch, budget=2))
    store = Store(tmp_path)
    held = len(store.read_embeddings("semantic/next")[0])
    given_up = params_for(WEEKS[2], following=False)
    embed.run(given_up, store, "semantic")
    report = mine.run(given_up, store, "semantic")
    assert held == 4 and report.figures["vectors_given_up_semantic"] == held
    [note] = [note for note in report.notes if "embed.next names no encoder any more" in note]
    assert f"{held} vectors" in note
    assert not list((tmp_path / "data").glob("*/semantic/next"))
    assert mine.run(given_up, store, "semantic").notes == []


def test_a_version_that_is_rewritten_keeps_such_an_index_but_for_what_is_taken_down(
    tmp_path: Path, encoded: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
):
    """Nothing is mined from it any more, and it still lies in what is published."""
    run_week(tmp_path, 0, lambda batch: params_for(batch, following=False))
    run_week(tmp_path, 1, lambda batch: params_for(batch, budget=2))
    store = Store(tmp_path)
    store.write_bytes(tmp_path / ".run" / "opened.json", b'{"rewrites": "dataset/2026.01.11"}')
    ids = store.read_table("images", ["image_id"], WEEKS[1]).column("image_id").to_pylist()[:1]
    assert any(path.parent.name == "next" for path in naming(store, ids))
    for stage in (embed, mine):
        monkeypatch.setattr(stage, "taken_down", lambda *_: set(ids))
        stage.run(params_for(WEEKS[2], following=False), store, "semantic")
    assert {path.parent.name for path in naming(store, ids)} == {"images"}  # which stage ingest takes it from
    assert store.embedded_shards("semantic/next")


def test_a_week_without_images_goes_on_with_the_next_index_and_is_published(
    tmp_path: Path, encoded: list[tuple[str, int]]
):
    run_week(tmp_path, 0, lambda batch: params_for(batch, following=False))
    run_week(tmp_path, 1, lambda batch: params_for(batch, budget=2))
    store = Store(tmp_path)
    (tmp_path / ".run" / "renew" / "embed-semantic.json").unlink()  # of the run before
    for stage in (embed, mine):
        stage.run(params_for(WEEKS[2], budget=2), store, "semantic")
    assert require_triplets(params_for(WEEKS[2], budget=2), store) == 0  # else: NothingToDo, and the work is lost
    assert renewed_counts(store) == {"embed semantic": 2}
    assert store.read_embeddings("semantic")[2] == "new 1"


@pytest.mark.parametrize(
    ("change", "is_followed"),
    [
        ({}, True),
        ({"cpu_dtype": None}, True),  # noted by a version of the code before this field: what is the default now
        ({"pooling": "mean"}, True),  # noted by a later one
        ({"model_sha256": None}, True),  # noted with its path, as earlier versions did
        ({"model_sha256": "00"}, False),  # another folder of the same name
        ({"revision": "abc"}, False),
        ({"dtype": "float16"}, False),
        ({"model": None, "model_sha256": None}, False),
    ],
)
def test_a_moved_index_is_followed_whatever_fields_the_code_has_by_now(
    tmp_path: Path, change: dict[str, str | None], is_followed: bool
):
    params, store = params_for(WEEKS[1]), Store(tmp_path)
    assert params.embed.next
    noted = {**spec_key(params.embed.next["semantic"]), **change}
    content = json.dumps({name: value for name, value in noted.items() if name not in change or value is not None})
    store.write_bytes(store.folder("data", "embeddings", "semantic", "moved.json"), content.encode())
    moved = with_moved_encoders(params, store)
    assert moved.embed.encoders["semantic"].model == ("new" if is_followed else "old")
    assert (moved.embed.next is None) == is_followed


def test_a_moved_index_names_its_model_and_not_the_folder_of_this_machine():
    spec = params_for(WEEKS[1]).embed.encoders["semantic"].model_copy(update={"model": "/home/ann/models/ours"})
    noted = spec_key(spec)
    assert noted["model"] == "ours" and "/home" not in json.dumps(noted) and is_same_encoder(noted, spec)
    assert not is_same_encoder(noted, spec.model_copy(update={"model": "/home/ann/others/ours"}))


def test_another_model_without_the_old_one_is_refused_with_the_way_out(tmp_path: Path, encoded: list[tuple[str, int]]):
    run_week(tmp_path, 0, lambda batch: params_for(batch, following=False))
    with pytest.raises(DataError, match=r"name the new one in embed\.next\.semantic"):
        run_week(tmp_path, 1, lambda batch: as_new(params_for(batch, following=False)))


@given(
    st.dictionaries(
        st.sampled_from([f"2026.01.{day}-0000{n}" for day in ("04", "11", "11.2", "11.10") for n in range(2)]),
        st.integers(0, 5),
    ),
    st.none() | st.integers(1, 9),
)
def test_shards_are_taken_whole_the_oldest_first_within_the_budget(missing: dict[str, int], budget: int | None):
    chosen = choose_shards(missing, budget)
    assert budget is None or sum(missing[stem] for stem in chosen) <= budget
    order = choose_shards(missing, None)
    assert chosen == order[: len(chosen)] and set(order) == missing.keys()
    batches = [stem.rpartition("-")[0] for stem in order]
    assert batches == sorted(batches, key=["2026.01.04", "2026.01.11", "2026.01.11.2", "2026.01.11.10"].index)


def test_the_manifest_names_the_vectors_that_took_over(tmp_path: Path, encoded: list[tuple[str, int]]):
    """The moved files are as large as the old ones, and older than the run: their names and sizes tell nothing."""
    run_week(tmp_path, 0, lambda batch: params_for(batch, following=False))
    run_week(tmp_path, 1, lambda batch: params_for(batch, budget=2))
    before = build_manifest(tmp_path, {})
    run_week(tmp_path, 2, lambda batch: params_for(batch, budget=2))
    for path in [p for p in (tmp_path / "data").rglob("*") if p.is_file()]:
        os.utime(path, (0, 0))
    Store(tmp_path).write_bytes(tmp_path / ".run" / "opened.json", b"{}")
    name = f"data/embeddings/semantic/{WEEKS[0]}-00000.npy"
    after = build_manifest(tmp_path, before)
    assert after[name]["size_bytes"] == before[name]["size_bytes"]
    assert after[name]["sha256"] == file_sha256(tmp_path / name) != before[name]["sha256"]


def test_renew_embed_goes_on_with_every_encoder_that_is_to_follow(tmp_path: Path, encoded: list[tuple[str, int]]):
    raw = yaml.safe_load(Path("params.yaml").read_text())
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match="embed.next names no encoder"):
        embed_values(clone, "", 3)
    spec = {"model": "new", "kind": "image", "window": {"low": 0.2, "high": 0.9999}}
    raw["embed"]["next"] = {"semantic": spec, "pattern": spec}
    (clone / "params.yaml").write_text(yaml.safe_dump(raw))
    values = embed_values(clone, "", 3)
    assert values["embed"] == {"next": {"semantic": {"budget": 3}, "pattern": {"budget": 3}}}
    assert values["ingest.sources"] == [] and set(values["renew"].values()) == {None}
    with pytest.raises(ConfigError, match="it encodes the oldest shards first"):
        embed_values(clone, "made_before=2026-01-01", None)
    with pytest.raises(ConfigError, match="--budget: found 0"):
        embed_values(clone, "", 0)

    run_week(tmp_path, 0, lambda batch: params_for(batch, following=False))
    store, params = Store(tmp_path), params_for(WEEKS[1], budget=3)
    assert "embed semantic: 4 images have no vector of the next encoder, at most 3" in forecast_next(
        params, store, "semantic"
    )
