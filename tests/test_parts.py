"""How many parts a stage has: from the rows at hand; a small week has one part."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import parse_params
from tasks.errors import ConfigError, DataError
from tasks.parts import count_parts, count_rows, part_names, parts_after
from tasks.records import StageReport
from tasks.store import Store
from tests.support.parameters import params_with


@pytest.mark.parametrize(("rows", "parts"), [(0, 1), (1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (26_000_000, 1000)])
def test_as_many_parts_as_the_rows_fill(rows: int, parts: int):
    assert count_parts(rows, 10) == parts


def test_one_part_maps_the_stage_once_and_nothing_where_a_later_call_does_it_all():
    assert part_names("caption", 1) == ["1/1"] and part_names("caption", 2) == ["1/2", "2/2"]
    assert part_names("mine", 1) == part_names("evaluate", 1) == part_names("ingest_fetch", 1) == []
    assert part_names("mine", 2) == ["1/2", "2/2"]


def write_rows(store: Store, table: str, name: str, columns: dict[str, list[Any]]) -> None:
    path = store.folder("data", table, f"{name}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_the_runs_own_rows_count(tmp_path: Path):
    store = Store(tmp_path)
    write_rows(store, "images", "2026.11.16", {"image_id": ["old"], "caption": pa.array([None], pa.string())})
    write_rows(store, "images", "2026.11.23", {"image_id": list("abcde"), "caption": ["x", None, "y", None, None]})
    write_rows(store, "pairs", "2026.11.23", {"pair_id": list("abcdefg")})
    params = params_with(
        open_run={"batch": "2026.11.23", "date": "2026-11-23"},
        recaption={"part_images": 2},
        embed={"part_images": 4},
        mine={"part_images": 5},
        caption={"part_pairs": 3},
    )
    assert parts_after("ingest", None, params, store) == {"recaption": 2}
    assert parts_after("validate", "images", params, store) == {"embed": 2, "mine": 1}
    assert parts_after("validate", "pairs", params, store) == {"caption": 3}
    assert parts_after("validate", "triplets", params, store) == parts_after("select", None, params, store) == {}


@pytest.mark.parametrize(
    ("benchmarks", "has_promoted", "parts"), [(0, False, 1), (0, True, 1), (3, False, 2), (3, True, 3)]
)
def test_evaluation_counts_models_and_benchmarks(tmp_path: Path, benchmarks: int, has_promoted: bool, parts: int):
    if has_promoted:
        (tmp_path / "models" / "promoted").mkdir(parents=True)
    named = [{"name": f"b{n}", "protocol": "circo", "path": "/b"} for n in range(benchmarks)]
    params = params_with(evaluate={"benchmark": named or None})
    assert parts_after("train", None, params, Store(tmp_path)) == {"evaluate": parts}


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.parquet: not readable as Parquet"):
        count_rows([tmp_path / "a.parquet"])


def test_the_report_carries_the_parts_and_a_merged_one_all_of_them():
    merged = StageReport.merged("validate", [StageReport("validate", parts={"embed": 2}), StageReport("validate")])
    assert merged.parts == {"embed": 2}
    assert StageReport.from_json(merged.to_json()) == merged


@pytest.mark.parametrize("section", ["caption", "judge"])
def test_the_number_of_parts_is_no_parameter_any_more_and_the_error_names_the_new_one(section: str):
    raw = params_with().model_dump(mode="json", by_alias=True)
    raw[section]["parts"] = 4
    with pytest.raises(ConfigError, match=f"unknown key '{section}.parts'.*'caption.part_pairs'"):
        parse_params(raw)
