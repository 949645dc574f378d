"""Exports hold every triplet: as Parquet with the images inside, and as MegaPairs' record."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from tasks.__main__ import main
from tasks.errors import EXIT_CONFIG_ERROR
from tasks.publish.export import export_features, sentence_transformers_records
from tasks.publish.readers import with_images
from tasks.train.batches import Example
from tasks.train.record_formats import mmeb_example
from tests.support.fake_run import fill
from tests.support.parameters import raw_params


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triplets over eight images."""
    root = tmp_path_factory.mktemp("clone")
    opened = {"date": "2026-11-16", "batch": "2026.11.16"}
    (root / "params.yaml").write_text(yaml.safe_dump(raw_params(open_run=opened)))
    fill(root, range(8))
    return root


def read_export(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def test_both_exports_hold_the_triplets_that_a_reader_streams(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    parquet, jsonl = tmp_path / "new" / "triplets.parquet", tmp_path / "triplets.jsonl"
    arguments = ["--root", str(clone), "--embed-images", str(parquet), "--jsonl", str(jsonl), "--json"]
    assert main(["export", *arguments]) == 0
    streamed = list(with_images(clone))
    assert json.loads(capsys.readouterr().out) == {
        "written": [{"path": str(path), "triplets": len(streamed)} for path in (parquet, jsonl)]
    }
    rows = read_export(parquet)
    assert [row["triplet_id"] for row in rows] == [row["triplet_id"] for row in streamed]
    for row, expected in zip(rows, streamed, strict=True):
        image = Image.open(io.BytesIO(row["query_image"]["bytes"])).convert("RGB")
        assert image.tobytes() == expected["query_image"].tobytes()
        assert [n["path"] for n in row["negative_images"]] == [f"{i}.jpg" for i in expected["negative_image_ids"]]
    records = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert [record["q_text"] for record in records] == [row["instructions"] for row in streamed]
    assert records[0]["t_img"] == f"{streamed[0]['target_image_id']}.jpg"
    assert b"huggingface" in pq.read_schema(parquet).metadata


def test_the_trainers_own_readers_read_what_is_exported(clone: Path, tmp_path: Path):
    """MMEB's record by the parser of VLM2Vec's format, and by `datasets` as VLM2Vec's own loader does."""
    out, images = tmp_path / "mmeb.jsonl", tmp_path / "images"
    assert main(["export", "--root", str(clone), "--mmeb", str(out), "--images", str(images)]) == 0
    streamed = list(with_images(clone))
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == sum(len(row["instructions"]) for row in streamed)
    example = mmeb_example(records[0])
    assert isinstance(example, Example) and example.instructions == (streamed[0]["instructions"][0],)
    assert example.query == f"{streamed[0]['query_image_id']}.jpg"
    target = Image.open(images / records[0]["pos_image_path"]).convert("RGB")
    assert target.tobytes() == streamed[0]["target_image"].tobytes()
    assert all((images / record["neg_image_path"]).exists() for record in records)
    loaded = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "hf"))
    assert set(loaded.column_names) == {
        "qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path"
    }  # fmt: skip


def test_sentence_transformers_rows_are_anchor_positive_negative(clone: Path, tmp_path: Path):
    out, images = tmp_path / "rows.jsonl", tmp_path / "images"
    assert main(["export", "--root", str(clone), "--sentence-transformers", str(out), "--images", str(images)]) == 0
    streamed = list(with_images(clone))
    rows = load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "hf"))
    # the order counts: the trainer takes the first column for the anchor, whatever it is called
    assert rows.column_names == ["anchor", "positive", "negative"]
    assert rows["anchor"][:] == [
        {"image": str(images / f"{row['query_image_id']}.jpg"), "text": text}
        for row in streamed
        for text in row["instructions"]
    ]
    first = rows[0]
    assert first["positive"] == {"image": str(images / f"{streamed[0]['target_image_id']}.jpg")}
    assert first["negative"] == {"image": str(images / f"{streamed[0]['negative_image_ids'][1]}.jpg")}
    assert all(Path(row[column]["image"]).is_file() for row in rows for column in rows.column_names)


def test_where_no_negative_was_mined_the_query_image_is_the_negative():
    row = {"query_image_id": "q", "target_image_id": "t", "negative_image_ids": ["q"], "instructions": ["a", "b"]}
    found = list(sentence_transformers_records(row, Path("images")))
    assert [record["negative"] for record in found] == [{"image": "images/q.jpg"}] * 2


def test_with_images_states_the_terms_and_types_that_old_releases_of_datasets_know(clone: Path, tmp_path: Path):
    assert main(["export", "--root", str(clone), "--embed-images", str(tmp_path / "x.parquet")]) == 0
    schema = pq.read_schema(tmp_path / "x.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert {kind["_type"] for kind in features.values()} == {"Value", "Image", "Sequence"}
    assert {"license_code", "query_license", "negative_licenses", "target_attribution"} <= set(schema.names)
    assert list(features) == schema.names == [feature["name"] for feature in export_features()]


def test_an_export_without_a_target_or_a_clone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "--root", str(tmp_path)]) == 78
    assert "nothing to write; give --embed-images" in capsys.readouterr().err
    assert main(["export", "--root", str(tmp_path), "--sentence-transformers", str(tmp_path / "out.jsonl")]) == 78
    assert "there is no folder for them; add --images FOLDER" in capsys.readouterr().err
    assert main(["export", "--root", str(tmp_path), "--jsonl", str(tmp_path / "out.jsonl")]) == 65
    assert "no data/triplets/*.parquet; run `dvc pull`" in capsys.readouterr().err


def test_a_folder_of_files_serves_as_many_workers_as_it_has_files(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A loader gives each worker whole files: none is idle, and none reads what another does."""
    monkeypatch.setattr("tasks.publish.export.FOLDER_ROWS_MIN", 2)
    assert main(["export", "--root", str(clone), "--embed-images", str(tmp_path / "rows")]) == 0
    files = sorted((tmp_path / "rows").glob("*.parquet"))
    wanted = [row["triplet_id"] for row in with_images(clone)]
    assert len(files) == len(wanted) // 2 > 1
    assert [row["triplet_id"] for path in files for row in read_export(path)] == wanted
    streamed = load_dataset("parquet", data_files=[str(path) for path in files], split="train", streaming=True)
    assert streamed.num_shards == len(files)
    of_workers = [[row["triplet_id"] for row in streamed.shard(len(files), number)] for number in range(len(files))]
    assert all(of_workers) and [i for ids in of_workers for i in ids] == wanted
    # other files beside those of an earlier export: a loader would read each row twice
    monkeypatch.setattr("tasks.publish.export.FOLDER_ROWS_MIN", 1000)
    assert main(["export", "--root", str(clone), "--embed-images", str(tmp_path / "rows")]) == EXIT_CONFIG_ERROR
    assert f"holds {files[0].name}, which is no part of this export" in capsys.readouterr().err


def test_pages_have_an_index(clone: Path, tmp_path: Path):
    assert main(["export", "--root", str(clone), "--embed-images", str(tmp_path / "one.parquet")]) == 0
    for path in (tmp_path / "one.parquet", clone / "data" / "triplets" / "2026.11.16-00000.parquet"):
        columns = pq.read_metadata(path).row_group(0)
        assert columns.num_columns > 5 and all(columns.column(n).has_offset_index for n in range(columns.num_columns))
