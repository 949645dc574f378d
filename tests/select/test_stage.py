"""The stage, on images that lie on a circle: two batches, what is read, figures, and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.config import Params, parse_params, read_raw, resolve
from tasks.errors import ConfigError, DataError
from tasks.names import stable_id
from tasks.select import stage as select
from tasks.store import Store
from tasks.store.vectors import MappedRows
from tests.support.candidates import on_circle
from tests.support.estimates import write_model


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


def test_a_second_batch_adds_pairs_within_the_quotas_and_a_rerun_gives_the_same_bytes(tmp_path: Path):
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


def test_a_batch_reads_only_the_vectors_of_the_images_that_its_candidates_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the earlier tables and vectors it takes what its candidates and their neighbours name, and the pairs are those
    of reading all.
    """
    store = Store(tmp_path)
    first, second = [0, 5, 10, 100, 105, 110, 200, 210], [3, 8]  # the new ones lie near three of the old
    fill(store, "2026.01.04", first, first)
    select.run(params_for("2026.01.04"), store)
    fill(store, "2026.01.11", second, first + second)
    requested: list[int] = []
    take = MappedRows.take_sorted

    def watched(self: MappedRows, rows: np.ndarray) -> np.ndarray:
        requested.extend(rows.tolist())
        return take(self, rows)

    monkeypatch.setattr(MappedRows, "take_sorted", watched)
    select.run(params_for("2026.01.11"), store)
    ids = store.read_corpus("semantic").ids.to_pylist()
    assert requested and {ids[row] for row in requested} <= {f"{d:03d}" for d in (0, 5, 10, 3, 8)}


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


def test_a_target_that_is_a_copy_of_the_query_under_one_encoder_is_left_out_on_request(tmp_path: Path):
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


def test_pairs_that_show_the_same_content_are_left_out_from_the_limit_on_and_off_by_default(tmp_path: Path):
    """005 is another shot of 000: cosine 0.9962. 010 lies as near to 005, and 020 further from all."""
    made = {}
    for limit in (None, 0.9999, 0.99, 0.95):
        store = Store(tmp_path / str(limit))
        fill(store, "2026.01.04", [0, 5, 10, 20], [0, 5, 10, 20])
        section = {"same_content_min": limit and {"pattern": limit}, "pairs_per_query": 9, "pairs_per_target": 9}
        report = select.run(params_for("2026.01.04", **section), store)
        rows = store.read_table("pairs").to_pylist()
        left = {(r["query_image_id"], r["target_image_id"]) for r in rows}
        assert report.read == len(rows) + report.dropped.get("same_content", 0) == 12
        made[limit] = left, table_bytes(store)
        if limit == 0.99:
            dropped = store.read_dropped("select", "2026.01.04").to_pylist()
            assert [r["reason"] for r in dropped] == ["same_content"] * 4
            assert {r["key"] for r in dropped} == {
                stable_id(a, b) for q, t in (("000", "005"), ("005", "010")) for a, b in ((q, t), (t, q))
            }
            details = [json.loads(r["detail"]) for r in dropped]
            assert {(d["query"], d["target"]) for d in details} >= {("000", "005"), ("010", "005")}
            kept = next(r for r in rows if (r["query_image_id"], r["target_image_id"]) == ("000", "020"))
            assert "005" in kept["negative_image_ids"], "negatives are untouched"
    assert made[None] == made[0.9999], "nothing lies above: the bytes of a selection without the limit"
    assert len(made[0.99][0]) == 8 and made[0.95][0] == {("000", "020"), ("020", "000")}


def table_bytes(store: Store) -> list[bytes]:
    """The tables that `select` writes."""
    paths = [p for folder in ("data/pairs", "data/dropped/select") for p in (store.root / folder).glob("*")]
    return [path.read_bytes() for path in sorted(paths)]


def test_a_similarity_that_no_vector_gives_is_null(tmp_path: Path):
    store = Store(tmp_path)
    fill(store, "2026.01.04", [0, 10], [0, 10], encoders=("semantic", "pattern"))
    store.write(store.folder("data", "neighbours", "caption", "2026.01.04-00000.parquet"), [], "neighbours")
    select.run(params_for("2026.01.04"), store)
    row = store.read_table("pairs").to_pylist()[0]
    assert row["similarity_caption"] is None and row["similarity_pattern"] == pytest.approx(0.985, abs=1e-3)
    assert row["negative_image_ids"] == [row["query_image_id"]]  # no mined one: the pair is kept all the same


def test_the_similarity_of_captions_is_measured_on_the_new_images(tmp_path: Path):
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


def test_select_before_mine_names_the_missing_stage(tmp_path: Path):
    with pytest.raises(DataError, match="mine semantic"):
        select.run(params_for("2026.01.04"), Store(tmp_path))


def test_pairs_are_drawn_by_how_much_they_differ_and_what_is_too_different_is_counted(tmp_path: Path):
    """Near images differ in one thing by the estimate; the judge's verdict on the first week moves the second."""
    revisions = dict.fromkeys(("semantic", "pattern", "caption"), "r1")
    model = str(write_model(tmp_path / "differences.json", revisions, cosine=0.95, window=(0.8, 0.999)))
    drawn = {"bands": [1, 1], "bands_by": "differences", "differences": model, "accepted_min": 0.2}
    store, degrees = Store(tmp_path / "store"), list(range(0, 200, 5))
    fill(store, "2026.01.04", degrees, degrees)
    report = select.run(params_for("2026.01.04", pairs_per_query=3, **drawn), store)
    rows = store.read_table("pairs").to_pylist()
    assert report.dropped["too_different"] > 0 and report.read == len(rows) + sum(report.dropped.values())
    assert {r["estimated_differences"] for r in rows} == {1, 2} and not report.notes
    assert min(r["estimated_acceptance"] for r in rows) >= 0.2
    counted = {n: report.figures[f"pairs_{n}_differences"] for n in (1, 2)}
    assert sum(counted.values()) == len(rows) and 0.2 < report.figures["expected_yield"] < 0.9
    nearest = {n: min(r["similarity_semantic"] for r in rows if r["estimated_differences"] == n) for n in (1, 2)}
    assert nearest[1] > nearest[2]
    judged = [{"pair_id": r["pair_id"], "batch": r["batch"]} for r in rows if r["estimated_differences"] == 1]
    store.write(store.table_path("triplets", "2026.01.04", 0), judged, "triplets")
    fill(store, "2026.01.11", [2, 32, 62], [*degrees, 2, 32, 62])
    select.run(params_for("2026.01.11", pairs_per_query=6, pairs_per_target=6, **drawn), store)
    second = store.read_table("pairs", batch="2026.01.11").to_pylist()
    assert {r["estimated_differences"] for r in second} == {1}, "of two differences none was accepted so far"
    best = [max(r["estimated_acceptance"] for r in week if r["estimated_differences"] == 1) for week in (rows, second)]
    assert best[1] > best[0]


def test_an_estimate_for_other_encoders_is_not_used_and_the_report_says_so(tmp_path: Path):
    model = str(write_model(tmp_path / "differences.json", {"semantic": "another"}))
    made = []
    for name, changes in (("none", {}), ("other", {"bands_by": "differences", "bands": [1, 1], "differences": model})):
        store, degrees = Store(tmp_path / name), list(range(0, 100, 5))
        fill(store, "2026.01.04", degrees, degrees)
        report = select.run(params_for("2026.01.04", accepted_min=0.9, **changes), store)
        made.append(store.table_path("pairs", "2026.01.04").read_bytes())
    assert made[0] == made[1] and "fitted to semantic another" in report.notes[0]
    store.table_path("pairs", "2026.01.04").unlink()
    with pytest.raises(ConfigError, match="no estimate of differences"):
        select.run(params_for("2026.01.04", differences=str(tmp_path / "missing.json")), store)
