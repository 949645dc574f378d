"""The gates, on tables made by hand: what they stop, what they let through, what they tell."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tasks.config import Params, load_params, overlay, read_raw, resolve
from tasks.errors import ConfigError, DataError
from tasks.reasons import UNREADABLE_REASONS
from tasks.records import StageReport
from tasks.store import Store
from tasks.validate import rows
from tasks.validate import stage as validate
from tests.support.fake_run import fill, gates
from tests.support.parameters import params_with


@pytest.fixture
def root(tmp_path: Path, project: Path) -> Path:
    """A folder as open_run leaves it, without git."""
    shutil.copytree(project / "expectations", tmp_path / "expectations")
    resolved = overlay(
        resolve(read_raw(project / "params.yaml"), "test"), {"open_run": {"date": "2026-11-16", "batch": "2026.11.16"}}
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(resolved))
    return tmp_path


def report(root: Path, table: str) -> dict:
    return json.loads((root / "reports" / "validation" / f"{table}.json").read_text())


def test_good_tables_pass_and_data_docs_are_built(root: Path):
    fill(root, range(0, 6))
    reports = gates(root)
    assert [r.new for r in reports] == [6, 4, 3]
    assert reports[1].figures["pairs_median_caption_cosine_new"] == pytest.approx(0.30)
    assert all(report(root, t)["is_valid"] for t in ("images", "pairs", "triplets"))
    assert (root / "reports/data_docs/index.html").exists()
    assert Store(root).read(root / "data/quarantine/triplets/2026.11.16.parquet", "quarantine").num_rows == 0


def test_an_empty_week_is_green_even_with_floors(root: Path):
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["validate"]["images"]["rows_min"] = 100
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    assert [r.new for r in gates(root)] == [0, 0, 0]


def test_a_batch_whose_texts_all_say_the_same_stops_at_the_triplets_gate(root: Path):
    """Three texts for 78 pairs; the mail's table has this week beside the ones before."""
    params = fill(root, range(0, 80))
    store = Store(root)
    (root / "version.json").write_text(json.dumps({"version": "2026.11.09", "weeks": {"2026.11.09": {"yield": 0.5}}}))
    with pytest.raises(DataError, match=r"gate 'triplets' .* distinct_3: be between: observed 0\.01"):
        validate.run(params, store, table="triplets")
    weeks = report(root, "triplets")["weeks"]
    assert list(weeks) == ["2026.11.09", "2026.11.16"] and weeks["2026.11.16"]["texts"] == 3 * 77
    lenient = params.validate_.model_copy(
        update={"triplets": params.validate_.triplets.model_copy(update={"distinct_min": 0.0})}
    )
    params = params.model_copy(update={"validate_": lenient})
    assert validate.run(params, store, table="triplets").figures["triplets_distinct_3"] < 0.02
    (path,) = store.table_files("triplets")
    texts = ["make it red", "a red one", "what if it were red?"]
    store.write(path, [{**row, "instructions": texts} for row in store.read(path, "triplets").to_pylist()], "triplets")
    in_one_form = {"distinct_min": 0.0, "same_content_max": 0.3}
    strict = params.validate_.model_copy(update={"triplets": params.validate_.triplets.model_copy(update=in_one_form)})
    with pytest.raises(DataError, match=r"gate 'triplets' .* same_content: be between: observed 0\.33"):
        validate.run(params.model_copy(update={"validate_": strict}), store, table="triplets")


def test_a_flood_of_copies_stops_at_the_images_gate(root: Path):
    params = fill(root, range(0, 6), copies=20)
    with pytest.raises(
        DataError, match=r"gate 'images' stopped batch 2026.11.16: duplicate_share: be between: observed 0.7"
    ):
        validate.run(params, Store(root), table="images")
    checks = {c["column"]: c for c in report(root, "images")["checks"] if c["table_half"] == "figures"}
    assert not checks["duplicate_share"]["is_held"] and checks["rows"]["is_held"], "what holds is named too"
    assert (checks["rows"]["observed"], checks["rows"]["expected"]) == (6, "at least 0")
    failure = report(root, "images")["failures"][0]
    assert (failure["observed"], failure["expected"]) == (pytest.approx(20 / 26), "at most 0.25")
    assert (
        len(failure["examples"]) == 5
        and failure["examples"][0]["reason"] == "duplicate"
        and len(failure["examples"][0]["image_ids"]) == 1
    )


@pytest.mark.parametrize("reason", UNREADABLE_REASONS)
def test_a_flood_of_unreadable_files_stops_at_the_images_gate(reason: str, root: Path):
    params = fill(root, range(0, 6))
    store = Store(root)
    dropped = [
        {"stage": "ingest", "batch": "2026.11.16", "key": f"s:{n}.png", "reason": reason, "detail": "not an image"}
        for n in range(4)
    ]
    path = store.dropped_path("ingest", "2026.11.16")
    path.unlink()
    store.write(path, dropped, "dropped")
    with pytest.raises(DataError, match=r"unreadable_share: be between: observed 0.4, expected at most 0.1"):
        validate.run(params, store, table="images")
    assert [e["reason"] for e in report(root, "images")["failures"][0]["examples"]] == [reason] * 4


def test_an_encoder_that_mines_next_to_nothing_stops_at_the_pairs_gate(root: Path):
    fill(root, range(0, 6))
    for floor, lowest, is_held in ((0.1, 0.05, True), (0.1, 0.1, False), (0.0, 0.0, False)):
        params = params_with(
            open_run={"date": "2026-11-16", "batch": "2026.11.16"},
            validate={"pairs": {"encoder_yield_min": floor}},
        )
        figures = {"yield_semantic": 9.5, "yield_pattern": lowest, "encoder_yield_lowest": lowest}
        Store(root).write_report(StageReport("select", figures=figures))
        if is_held:
            with pytest.raises(
                DataError, match=r"encoder_yield_lowest: be between: observed 0.05, expected at least 0.1"
            ):
                validate.run(params, Store(root), table="pairs")
        else:
            assert validate.run(params, Store(root), table="pairs").figures["pairs_yield_pattern"] == lowest
        assert report(root, "pairs")["figures"]["yield_semantic"] == 9.5  # logged beside the gate's verdict


def change(root: Path, table: str, number: int, **values: object) -> Params:
    """The table with one row changed."""
    store = Store(root)
    path = store.table_files(table)[0]
    rows = store.read(path, table).to_pylist()
    rows[number].update(values)
    path.unlink()
    store.write(path, rows, table)
    return load_params(root / "params.yaml")


@pytest.mark.parametrize(
    ("table", "values", "column"),
    [
        ("images", {"source_uri": "fake:/home/me/1.jpg"}, "leads_outside"),
        ("images", {"width_px": 4000}, "width_px"),
        ("pairs", {"negative_image_ids": []}, "is_query_first_negative"),
        ("pairs", {"target_image_id": "f" * 64}, "are_images_known"),
        ("pairs", {"mined_by": []}, "encoders"),
        ("pairs", {"mined_by": ["semantic", "smell"]}, "are_miners_configured"),
        ("pairs", {"similarity_caption": 0.45}, "similarity_caption"),
        ("pairs", {"similarity_semantic": 0.9999}, "similarity_semantic"),
        ("pairs", {"mined_by": ["pattern"], "similarity_pattern": 0.2}, "similarity_pattern"),
        ("pairs", {"rank": 8}, "rank"),
        ("triplets", {"instructions": ["a", "A "]}, "are_instructions_distinct"),
        ("triplets", {"judge_target": [0.95, 0.2, 0.95]}, "lowest_judge_target"),
        ("triplets", {"judge_negative": [0.1]}, "are_scores_whole"),
    ],
)
def test_a_wrong_row_is_quarantined_and_the_batch_goes_on(table: str, values: dict, column: str, root: Path):
    fill(root, range(0, 6))
    params, store = change(root, table, 1, **values), Store(root)
    rows_before = store.read_table(table).to_pylist()
    out = validate.run(params, store, table=table)  # type: ignore[arg-type]
    key, wrong = rows.KEYS[table], rows_before[1]
    rules = store.read(root / f"data/quarantine/{table}/2026.11.16.parquet", "quarantine").to_pylist()
    assert {q["key"] for q in rules if q["column"] == column} == {wrong[key]}
    assert store.read(root / f"data/quarantine/{table}/rows/2026.11.16.parquet", table).to_pylist() == [wrong]
    assert store.read_table(table).to_pylist() == [rows_before[0], *rows_before[2:]]
    assert (out.read, out.written) == (len(rows_before), 1) and column in out.notes[0]
    rule = next(f for f in report(root, table)["broken_rules"] if f["column"] == column)
    assert rule["examples"][0]["key"] == wrong[key] and rule["examples"][0]["image_ids"]
    assert report(root, table)["is_valid"]


@pytest.mark.parametrize("table", ["images", "triplets"])
def test_a_second_call_of_the_gate_changes_nothing_and_says_the_same(table: str, root: Path):
    fill(root, range(0, 6))
    values = {"images": {"phash": "?"}, "triplets": {"prompt_sha256": "?"}}[table]
    params, store = change(root, table, 1, **values), Store(root)
    out = validate.run(params, store, table=table)  # type: ignore[arg-type]
    rules = store.read(root / f"data/quarantine/{table}/2026.11.16.parquet", "quarantine").to_pylist()
    again = validate.run(params, store, table=table)  # type: ignore[arg-type]
    assert (again.read, again.written, again.figures) == (out.read, out.written, out.figures)
    assert store.read(root / f"data/quarantine/{table}/2026.11.16.parquet", "quarantine").to_pylist() == rules
    assert store.read_table(table).num_rows == out.read - 1


ROW_RULES = {
    "images": {
        "image_id": {"image_id": "no id"},
        "source_uri": {"source_uri": "mine:"},
        "leads_outside": {"source_uri": "mine:a/../b.jpg"},
        "source_sha256": {"source_sha256": "f"},
        "phash": {"phash": ""},
        "width_px": {"width_px": 0},
        "height_px": {"height_px": 513},
        "offset_bytes": {"offset_bytes": -1},
        "size_bytes": {"size_bytes": 0},
        "license_code": {"license_code": None},
        "caption": {"caption": ""},
    },
    "pairs": {
        "pair_id": {"pair_id": "p"},
        "is_target_a_negative": {"negative_image_ids": ["QUERY", "TARGET"]},
        "is_same_image": {"target_image_id": "QUERY"},
        "similarity_of_miners": {"similarity_semantic": 1.5},
    },
    "triplets": {
        "instructions_count": {"instructions": ["one"]},
        "shortest_instruction_chars": {"instructions": ["one", "two", "3"]},
        "is_query_first_negative": {"negative_image_ids": ["TARGET"]},
        "is_target_a_negative": {"negative_image_ids": ["QUERY", "TARGET"]},
        "are_images_known": {"query_image_id": "f" * 64},
        "prompt_sha256": {"prompt_sha256": "?"},
        "captioner_revision": {"captioner_revision": None},
        "judge_revision": {"judge_revision": None},
    },
}


@pytest.mark.parametrize("table", ROW_RULES)
def test_each_row_rule_quarantines_its_row_and_no_other(table: str, root: Path):
    """One row breaks each rule: a batch of many rows, since as many as rules leave it."""
    rules = ROW_RULES[table]
    fill(root, range(0, 4 * len(rules)))
    store = Store(root)
    before = store.read_table(table).to_pylist()
    for number, values in enumerate(rules.values(), 1):
        row = before[number]
        names = {"QUERY": row.get("query_image_id"), "TARGET": row.get("target_image_id")}
        filled = {
            column: [names.get(v, v) for v in value] if isinstance(value, list) else names.get(value, value)
            for column, value in values.items()
        }
        params = change(root, table, number, **filled)
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["validate"][table]["quarantined_share_max"] = 0.5
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    params = load_params(root / "params.yaml")
    out = validate.run(params, store, table=table)  # type: ignore[arg-type]
    assert out.written == len(rules)
    broken = {
        q["column"] for q in store.read(root / f"data/quarantine/{table}/2026.11.16.parquet", "quarantine").to_pylist()
    }
    assert set(rules) <= broken
    after = store.read_table(table).to_pylist()
    assert after == [before[0], *before[len(rules) + 1 :]]


def test_a_batch_with_too_many_wrong_rows_stops_and_keeps_its_table(root: Path):
    fill(root, range(0, 12))
    for number in range(4):
        params = change(root, "images", number, source_uri=f"mine:/{number}.jpg")
    with pytest.raises(DataError, match=r"quarantined_share: be between: observed 0.33.*leads_outside"):
        validate.run(params, Store(root), table="images")
    assert Store(root).read_table("images").num_rows == 12
    assert not report(root, "images")["is_valid"]


def test_of_the_same_id_twice_the_first_row_stays(root: Path):
    fill(root, range(0, 6))
    first = Store(root).read_table("images").to_pylist()[0]
    params = change(root, "images", 3, image_id=first["image_id"])
    assert validate.run(params, Store(root), table="images").written == 1
    assert Store(root).read_table("images").to_pylist()[0] == first
    assert Store(root).read_table("images").num_rows == 5
    assert validate.run(params, Store(root), table="images").written == 1


@pytest.mark.parametrize("files", [1, 2, 3])
def test_a_small_week_with_one_bad_file_goes_on(files: int, root: Path):
    """A share of three files says nothing: one copy, one broken file or one image without a caption stops no week."""
    params = fill(root, range(0, files))
    store = Store(root)
    change(root, "images", 0, caption=None, caption_source=None)
    path = store.dropped_path("ingest", "2026.11.16")
    path.unlink()
    reasons = ("undecodable", "duplicate")
    row = {"stage": "ingest", "batch": "2026.11.16", "detail": ""}
    store.write(path, [{**row, "key": f"s:{reason}", "reason": reason} for reason in reasons], "dropped")
    assert validate.run(params, store, table="images").written == 0


def test_a_rule_that_cannot_be_evaluated_stops_the_batch(root: Path):
    params = fill(root, range(0, 6))
    path = root / "expectations" / "images.json"
    path.write_text(path.read_text().replace('"^[0-9a-f]{16}$"', '"["'))
    with pytest.raises(DataError, match="phash"):
        validate.run(params, Store(root), table="images")


def test_severity_and_mostly_of_a_suite_decide_what_stops(root: Path):
    fill(root, range(0, 6))
    params, path = change(root, "images", 1, phash="?"), root / "expectations" / "images.json"
    suite = json.loads(path.read_text())
    rule = next(e for e in suite["rows"]["expectations"] if e["kwargs"]["column"] == "phash")
    rule["severity"] = "critical"
    path.write_text(json.dumps(suite))
    with pytest.raises(DataError, match="phash: match regex: observed 1 of 6 rows"):
        validate.run(params, Store(root), table="images")
    rule["kwargs"]["mostly"] = 0.8
    path.write_text(json.dumps(suite))
    assert validate.run(params, Store(root), table="images").written == 0


@pytest.mark.parametrize(
    ("uri", "is_path", "expected"),
    [
        ("web:https://a.example/x/../y.jpg", False, False),
        ("web:https://a.example/y.jpg?next=../../etc", False, False),
        ("web:/relative.jpg", False, False),
        ("box:/leading/slash.jpg", False, False),
        ("mine:a../x.jpg", True, False),
        ("mine:..a/x.jpg", True, False),
        ("mine:a/.../x.jpg", True, False),
        ("mine:..", True, True),
        ("mine:../x.jpg", True, True),
        ("mine:a/../x.jpg", True, True),
        ("mine:a/..", True, True),
        ("mine:/etc/x.jpg", True, True),
    ],
)
def test_a_name_is_looked_at_by_whole_parts_and_only_where_it_is_a_path(uri: str, is_path: bool, expected: bool):
    assert rows.leads_outside(uri, () if is_path else ("web", "box")) is expected


def test_a_pair_outside_an_encoders_window_is_named_with_its_similarity_and_the_window(root: Path):
    fill(root, range(0, 6))
    params = change(root, "pairs", 1, similarity_caption=0.375)  # similarity_semantic stays 0.9: the highest of both
    validate.run(params, Store(root), table="pairs")
    (rule,) = report(root, "pairs")["broken_rules"]
    assert rule["observed"].startswith("1 of 4 rows, e.g. [0.375")
    assert rule["expected"] == "at least 0.5 and at most 1"
    (row,) = Store(root).read(root / "data/quarantine/pairs/2026.11.16.parquet", "quarantine").to_pylist()
    assert (row["column"], row["observed"][:4]) == ("similarity_caption", "0.37")


def test_the_ends_of_a_window_pass_as_they_are_stored(root: Path):
    """A column holds float32: a similarity in the window may be stored as the nearest float32 to the window's end."""
    fill(root, range(0, 6))
    params = change(root, "pairs", 1, similarity_semantic=0.5)
    assert validate.run(params, Store(root), table="pairs").written == 0
    params = change(root, "pairs", 1, similarity_semantic=0.9998 - 1e-12)
    assert validate.run(params, Store(root), table="pairs").written == 0


def test_a_similarity_of_an_encoder_that_did_not_mine_the_pair_is_not_checked(root: Path):
    fill(root, range(0, 6))
    params = change(root, "pairs", 1, similarity_pattern=0.1)
    assert validate.run(params, Store(root), table="pairs").written == 0


def test_a_pair_of_two_earlier_images_keeps_the_window_of_its_own_run(root: Path):
    """It takes the place of a pair whose image was taken down (stage select)."""
    row = {"query_image_id": "a", "target_image_id": "b", "mined_by": ["semantic"], "similarity_semantic": 0.5}
    pair = {**row, "pair_id": "p", "rank": 0, "negative_image_ids": ["a"]}
    for new, checked in (({"a"}, 0.5), ({"b"}, 0.5), ({"c"}, None)):
        (out,) = rows.pair_rows([pair], rows.Context(new_image_ids=frozenset(new)))
        assert (out["similarity_semantic"], out["similarity_pattern"]) == (checked, None)


@pytest.mark.parametrize(
    ("judge", "values", "column"),
    [
        ({"threshold": 0.95}, {"judge_target": [0.95, 0.9, 0.95]}, "lowest_judge_target"),
        ({"instructions_min": 4}, {}, "instructions_count"),
    ],
)
def test_the_triplets_gate_checks_what_the_judge_was_asked_for(judge: dict, values: dict, column: str, root: Path):
    """The gate's own numbers are lower."""
    fill(root, range(0, 6))
    change(root, "triplets", 1, **values)
    params = params_with(open_run={"date": "2026-11-16", "batch": "2026.11.16"}, judge=judge)
    with pytest.raises(DataError, match=column):  # every row breaks the rule
        validate.run(params, Store(root), table="triplets")


def test_ids_of_an_earlier_version_do_not_come_again(root: Path):
    fill(root, range(0, 6))
    raw = yaml.safe_load((root / "params.yaml").read_text())
    raw["open_run"].update(date="2026-11-23", batch="2026.11.23")
    (root / "params.yaml").write_text(yaml.safe_dump(raw))
    params = fill(root, range(5, 9))  # image 5 a second time
    out = validate.run(params, Store(root), table="images")
    assert out.written == 1 and "is_known_before" in out.notes[0]
    assert Store(root).read_table("images", batch="2026.11.23").num_rows == 3


def test_a_suite_that_asks_for_an_unknown_number_is_refused(root: Path):
    params = fill(root, range(0, 6))
    path = root / "expectations" / "images.json"
    path.write_text(path.read_text().replace("rows_min", "rows_minimum"))
    with pytest.raises(ConfigError, match="wants parameter 'rows_minimum'; known in validate.images"):
        validate.run(params, Store(root), table="images")
