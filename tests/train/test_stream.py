"""A dataset as a stream: an order that is computed, nothing held, and what cannot be used is left out and counted."""

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tasks.config import MixedDatasetConfig, Params
from tasks.errors import DataError
from tasks.store import Store
from tasks.train.record_files import INDEX_ROWS, JsonlRecords, index_lines, open_records
from tasks.train.stage import run
from tasks.train.stream import ROUNDS, RecordStream, permuted, shuffled_numbers
from tests.support.training import with_train


def megapairs(folder: Path, lines: list[str]) -> MixedDatasetConfig:
    """A dataset of these lines, in two files, and the images that `record` names."""
    for n in range(12):
        Image.new("RGB", (40, 40), (20 * n, 0, 0)).save(folder / f"{n}.png")
    for name, part in (("a", lines[: len(lines) // 2]), ("b", lines[len(lines) // 2 :])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    return MixedDatasetConfig(name="mega", format="megapairs", path=str(folder), images=str(folder))


def record(n: int) -> str:
    """The n-th record; its query names it."""
    return json.dumps({"q_img": f"{n % 12}.png", "q_text": [f"edit {n}"], "t_img": f"{(n + 1) % 12}.png", "hns": []})


def mmeb_train(folder: Path) -> MixedDatasetConfig:
    """MMEB-train as it is published: Parquet a subset, images beside them; every kind of query and candidate."""
    said = "<|image_1|>\nRepresent the given image.\n"
    kinds = [
        ("<|image_1|>\nFind it in red.\n", "CIRR/1.png", said, "CIRR/2.png", said, "CIRR/4.png"),
        ("<|image_1|>\nWhat is it?\n", "CIRR/1.png", "a star", "", "a circle", ""),
        ("Find me an image of a star.\n", "", said, "CIRR/5.png", None, None),
    ]
    columns = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
    (folder / "images" / "CIRR").mkdir(parents=True)
    for n in range(6):
        Image.new("RGB", (40, 40), (0, 20 * n, 0)).save(folder / "images" / "CIRR" / f"{n}.png")
    rows = [dict(zip(columns, kind, strict=True)) for kind in kinds * 3]
    datasets.Dataset.from_list(rows).to_parquet(folder / "CIRR" / "original-00000-of-00001.parquet")
    images = str(folder / "images")
    return MixedDatasetConfig(
        name="cirr", format="mmeb", path=str(folder), subset="CIRR", split="original", images=images, weight=50.0
    )


def texts(stream: Iterator[object], count: int) -> list[str]:
    return [example.instructions[0] for example in islice(stream, count)]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000])
def test_the_order_visits_every_record_once(count: int):
    for seed in range(3):
        order = list(shuffled_numbers(count, random.Random(seed)))
        assert sorted(order) == list(range(count))
    assert count < 60 or order != list(shuffled_numbers(count, random.Random(0)))


def test_the_order_of_26_million_records_is_spread_and_costs_no_memory():
    keys = np.array([random.Random(1).getrandbits(64) for _ in range(ROUNDS)], np.uint64)
    places = permuted(np.arange(20_000, dtype=np.uint64), 26_000_000, keys)
    assert len(set(places.tolist())) == 20_000 and places.max() < 26_000_000
    assert np.histogram(places, bins=10, range=(0, 26e6))[0].min() > 1_800, "a tenth of the draws in every tenth"


def test_every_pass_is_whole_in_a_new_order_that_follows_from_the_seed(tmp_path: Path):
    lines = [record(n) for n in range(20)]
    config = megapairs(tmp_path, [*lines[:5], "no JSON", *lines[5:]])
    stream = RecordStream(config, open_records(config, tmp_path / "index"))
    found = texts(stream.shuffled(random.Random(0)), 40)
    assert sorted(found[:20]) == sorted(found[20:]) == sorted(f"edit {n}" for n in range(20))
    assert found[:20] != found[20:] and stream.dropped.counts == {"damaged_record": 1}, "counted once, not in each pass"
    assert stream.dropped.first == [f"{tmp_path / 'a.jsonl'}:6: not JSON (Expecting value: line 1 column 1 (char 0))"]
    again = RecordStream(config, open_records(config, tmp_path / "index"))
    assert texts(again.shuffled(random.Random(0)), 40) == found and repr(again) == repr(stream)
    assert texts(again.shuffled(random.Random(1)), 20) != found[:20]


def test_the_index_is_written_once_and_again_when_the_files_change(tmp_path: Path):
    config = megapairs(tmp_path, [record(n) for n in range(8)])
    open_records(config, tmp_path / "index")
    (first,) = (tmp_path / "index").glob("*.arrow")
    made = first.stat().st_mtime_ns
    assert len(open_records(config, tmp_path / "index")) == 8 and first.stat().st_mtime_ns == made
    with open(tmp_path / "b.jsonl", "a") as file:
        file.write(record(9))  # without a newline at its end
    records = open_records(config, tmp_path / "index")
    assert len(records) == 9 and records[8]["q_text"] == ["edit 9"]


def test_lines_are_found_across_blocks_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.train.record_files.SCAN_BYTES", 7)
    monkeypatch.setattr("tasks.train.record_files.INDEX_ROWS", 3)
    (tmp_path / "a.jsonl").write_text('{"n": 0}\n\n{"n": 1}\n{"n": "long"}\n   \n{"n": 3}\n{"n": 4}\n')
    (tmp_path / "b.jsonl").write_text('{"n": 5}\n{"n": 6}')
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert [b.num_rows for b in index_lines(files)] == [3, 3, 1] and INDEX_ROWS > 3
    for folder in (None, tmp_path / "index"):
        records = JsonlRecords(files, folder)
        assert [records[n]["n"] for n in range(len(records))] == [0, 1, "long", 3, 4, 5, 6]
        assert records.where(3).endswith("a.jsonl:6") and records.where(6).endswith("b.jsonl:2")


def test_a_wrong_folder_ends_the_training_before_its_first_step(tmp_path: Path):
    config = megapairs(tmp_path, [record(n) for n in range(30)])
    wrong = config.model_copy(update={"images": str(tmp_path / "elsewhere")})
    with pytest.raises(DataError, match=r"30 of 30 records cannot be used.*elsewhere/.*is missing"):
        RecordStream(wrong, open_records(wrong)).require_usable(0.05)
    RecordStream(config, open_records(config)).require_usable(0.05)


@pytest.mark.slow
def test_the_released_layouts_train_and_what_cannot_be_read_is_left_out(params: Params, store: Store, tmp_path: Path):
    """MegaPairs, streamed, with a missing and a broken image; MMEB-train, read as a whole."""
    config = megapairs(tmp_path, [record(n) for n in range(60)])
    (tmp_path / "3.png").unlink()
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:40])
    config = config.model_copy(update={"weight": 100.0})
    changes = {"datasets": (config, mmeb_train(tmp_path / "MMEB-train")), "faulty_records_share_max": 0.6}
    params = with_train(params, **changes, locked_steps=0, stream_records=10)
    report = run(params, store)
    weights = store.folder("models", "candidate", "model.safetensors").read_bytes()
    assert report.figures["loss"] > 0 and 1 <= report.dropped["unreadable_image"] <= 20
    assert report.read == 8 + 60 + 9
    written = json.loads(store.folder("reports", "training.json").read_text())
    assert written["datasets"] == {"mega": 60, "cirr": 9}
    assert run(params, store) == report, "the same seed, the same training"
    assert store.folder("models", "candidate", "model.safetensors").read_bytes() == weights


def test_one_record_with_an_unknown_column_does_not_end_a_training(tmp_path: Path):
    good = {"qry": "find it", "qry_image_path": "", "pos_text": "a star", "pos_image_path": ""}
    lines = [json.dumps({**good, "qry": f"find {n}"}) for n in range(6)] + [json.dumps({**good, "neg_video": "1.mp4"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    config = MixedDatasetConfig(name="mix", format="mmeb", path=str(tmp_path / "a.jsonl"), images=str(tmp_path))
    stream = RecordStream(config, open_records(config))
    assert set(texts(stream.shuffled(random.Random(0)), 12)) == {f"find {n}" for n in range(6)}
    assert stream.dropped.counts == {"damaged_record": 1} and "neg_video" in stream.dropped.first[0]
