"""Records of MegaPairs' and MMEB's formats become examples, or are counted with the reason why not."""

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import yaml
from PIL import Image

from tasks.config import MixedDatasetConfig
from tasks.errors import ConfigError, DataError
from tasks.train.batches import Candidate, Example
from tasks.train.datasets import mmeb_example, read_dataset
from tests.support.images import without_palette


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images and room for records."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for n, name in enumerate(("q", "t", "n1", "n2", "deep/q2", "deep/t2")):
        Image.new("RGB", (40, 40), (40 * n, 0, 0)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write_dataset(folder: Path, kind: str, *records: object) -> MixedDatasetConfig:
    file = folder / f"{kind}.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return MixedDatasetConfig(name=kind, format=kind, path=str(file), images=str(folder / "images"), weight=2.0)


def test_records_of_megapairs(folder: Path):
    record = {
        "q_img": "q.png",
        "q_text": ["make it red", "red, please"],
        "t_img": "t.png",
        "hns": ["q.png", "n1.png", "t.png", "n2.png", "n1.png"],
    }
    examples, files, dropped = read_dataset(
        write_dataset(folder, "megapairs", record, {"q_img": "q.png", "q_text": [], "t_img": "t.png"})
    )
    name = "megapairs:{}.png".format
    assert examples == [Example(name("q"), name("t"), (name("n1"), name("n2")), ("make it red", "red, please"))]
    assert dropped == {"no_text": 1} and files[name("n2")] == folder / "images" / "n2.png"


def test_what_an_entry_says_of_its_records_is_said_of_each_example(folder: Path):
    record = {"q_img": "q.png", "q_text": ["red"], "t_img": "t.png"}
    config = write_dataset(folder, "megapairs", record)
    asked = config.model_copy(update={"symmetric": True, "instruction": "Find it."})
    for entry, expected in ((config, (False, None)), (asked, (True, "Find it."))):
        example = read_dataset(entry)[0][0]
        assert (example.is_symmetric, example.task) == expected


def test_records_of_mmeb_have_queries_and_candidates_of_image_and_text(folder: Path):
    right = {
        "qry": "<|image_1|>\nmake it red",
        "qry_image_path": "q.png",
        "pos_text": "<|image_1|>",
        "pos_image_path": "t.png",
    }
    right |= {"neg_text": "<|image_1|>", "neg_image_path": ["n1.png"]}
    text_target = {
        "qry": "<|image_1|> what is it?",
        "qry_image_path": "q.png",
        "pos_text": "a star",
        "pos_image_path": "",
    }
    config = write_dataset(folder, "mmeb", right, text_target, {"qry": "a star", "pos_image_path": "t.png"})
    examples, _, dropped = read_dataset(config)
    assert [replace(e, task=None) for e in examples] == [
        Example("mmeb:q.png", "mmeb:t.png", ("mmeb:n1.png",), ("make it red",)),
        Example("mmeb:q.png", Candidate(None, "a star"), (), ("what is it?",)),
        Example(None, "mmeb:t.png", (), ("a star",)),
    ]
    assert not dropped and {e.task for e in examples} == {""}, "MMEB's texts hold each task's instruction"
    told, _, _ = read_dataset(config.model_copy(update={"instruction": "Find it:"}))
    assert {e.task for e in told} == {"Find it:"}
    represent = "<|image_1|>\nRepresent the given image."
    composed = mmeb_example(right | {"pos_text": represent, "neg_text": represent})
    assert isinstance(composed, Example) and composed.query_candidate == Candidate(
        "q.png", "Represent the given image."
    )
    assert composed.target == Candidate("t.png", "Represent the given image.")
    assert composed.negatives == (Candidate("n1.png", "Represent the given image."),)
    assert mmeb_example(right | {"qry": "<|image_1|>"}) == "no_text"
    assert mmeb_example(right | {"pos_text": "<|image_1|>", "pos_image_path": ""}) == "no_target"


def test_records_of_mmeb_v2_put_the_instruction_before_the_text(folder: Path):
    record = {"qry_inst": "<|image_1|> Find it:", "qry_text": "in red", "qry_img_path": "q.png", "tgt_text": ["", ""]}
    record |= {"tgt_inst": "<|image_1|> Represent the image.", "tgt_img_path": ["t.png", "n1.png"]}
    example = mmeb_example(record)
    assert isinstance(example, Example) and (example.query, example.instructions) == ("q.png", ("Find it: in red",))
    assert example.target == Candidate("t.png", "Represent the image.")
    assert example.negatives == (Candidate("n1.png", "Represent the image."),)
    with pytest.raises(ConfigError, match=r"does not read the columns \['qry_video_path'\]"):
        read_dataset(write_dataset(folder, "mmeb", record | {"qry_video_path": "a.mp4"}))
    _, _, dropped = read_dataset(write_dataset(folder, "mmeb", record, record | {"tgt_text": ["a", "b", "c"]}))
    assert dropped == {"damaged_record": 1}


@pytest.mark.parametrize("layout", ["parquet", "parquet folder", "a subset's folder", "load_dataset", "save_to_disk"])
def test_the_released_layouts_give_the_same_examples(folder: Path, layout: str, monkeypatch: pytest.MonkeyPatch):
    """MMEB-train as published: <subset>/<split>-00000-of-00001.parquet beside the images."""
    records = [
        {"qry": f"<|image_1|>\nmake it {c}", "qry_image_path": "q.png", "pos_text": "", "pos_image_path": "t.png"}
        for c in ("red", "blue")
    ]
    plain, _, _ = read_dataset(write_dataset(folder, "mmeb", *records))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    table = datasets.Dataset.from_list(records)
    file = folder / "data" / "CIRR" / "original-00000-of-00001.parquet"
    table.to_parquet(file)
    table.save_to_disk(folder / "saved")
    files = [{"split": "original", "path": "data/CIRR/original-*"}]
    card = yaml.safe_dump({"configs": [{"config_name": "CIRR", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n")
    change = {
        "parquet": {"path": str(file)},
        "parquet folder": {"path": str(file.parent)},
        "a subset's folder": {"path": str(folder / "data"), "subset": "CIRR", "split": "original"},
        "load_dataset": {"path": str(folder), "subset": "CIRR", "split": "original"},
        "save_to_disk": {"path": str(folder / "saved")},
    }[layout]
    config = MixedDatasetConfig(name="mmeb", format="mmeb", images=str(folder / "images"), **change)
    assert read_dataset(config)[0] == plain and len(plain) == 2


def test_a_line_ends_at_a_newline_alone(folder: Path):
    """A carriage return is a blank of JSON, U+2028 and U+0085 are characters of a text."""
    config = write_dataset(folder, "megapairs")
    text = "make it\u2028red\u0085now"
    line = f'{{"q_img": "q.png",\r"q_text": ["{text}"], "t_img": "t.png"}}'
    Path(config.path).write_bytes(f"{line}\r\n   \n{line}\nno JSON\n\n{line}".encode())
    examples, _, dropped = read_dataset(config)
    assert [e.instructions for e in examples] == [("make it red now",)] * 3 and dropped == {"damaged_record": 1}


def test_errors_name_the_file_and_the_line(folder: Path):
    good = {"q_img": "q.png", "q_text": ["x"], "t_img": "t.png", "hns": []}
    with pytest.raises(DataError, match=r"megapairs.jsonl:1: image .*gone.png is missing"):
        read_dataset(write_dataset(folder, "megapairs", good | {"t_img": "gone.png"}))
    with pytest.raises(DataError, match="lies outside"):
        read_dataset(write_dataset(folder, "megapairs", good | {"t_img": "../../etc/passwd"}))
    with pytest.raises(
        DataError, match=r":1: key 'q_img' is missing in a record of format 'megapairs'; found \['text'\]"
    ):
        read_dataset(write_dataset(folder, "megapairs", {"text": 1}))
    with pytest.raises(DataError, match="no record to train on; left out: {'no_text': 1}"):
        read_dataset(write_dataset(folder, "megapairs", good | {"q_text": []}))
    config = write_dataset(folder, "megapairs", good)
    Path(config.path).write_text("{\n")
    with pytest.raises(DataError, match="megapairs.jsonl:1: not JSON"):
        read_dataset(config)
    with pytest.raises(ConfigError, match="expected a JSONL file"):
        read_dataset(config.model_copy(update={"path": str(folder / "nowhere")}))


def test_a_record_that_cannot_be_used_is_left_out_and_counted(folder: Path):
    good = {"q_img": "q.png", "q_text": ["x"], "t_img": "t.png", "hns": ["n1.png"]}
    content = (folder / "images" / "q.png").read_bytes()
    (folder / "images" / "cut.png").write_bytes(content[: len(content) // 2])
    Image.effect_noise((300, 300), 90).convert("RGB").save(folder / "whole.jpg")
    (folder / "images" / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-5000])
    (folder / "images" / "text.png").write_text("no image")
    (folder / "images" / "no_palette.png").write_bytes(without_palette())
    bad = [
        good | {"t_img": "gone.png"},
        good | {"q_img": "cut.png"},
        good | {"q_img": "cut.jpg"},
        good | {"t_img": "text.png"},
        good | {"t_img": "no_palette.png"},
        good | {"t_img": "../whole.jpg"},
        {"text": 1},
    ]
    config = write_dataset(folder, "megapairs", *[good] * 200, *bad, good | {"hns": ["gone.png", "n2.png"]})
    with open(config.path, "ab") as f:
        f.write(b'{"q_img": "\xff\n[1]\n')
    examples, files, dropped = read_dataset(config)
    assert len(examples) == 201 and examples[-1].negatives == ("megapairs:n2.png",)
    assert dropped == {
        "missing_image": 1,
        "broken_image": 4,
        "unsafe_path": 1,
        "damaged_record": 3,
        "negative_missing_image": 1,
    }
    assert sorted(files) == [f"megapairs:{name}.png" for name in ("n1", "n2", "q", "t")]
    with pytest.raises(
        DataError, match="9 of 210 records cannot be used, at most 0.01 of them may.*gone.png is missing"
    ):
        read_dataset(config, 0.01)
    few, _, _ = read_dataset(write_dataset(folder, "megapairs", good, *bad[:3]), 0.01)  # three are free
    assert len(few) == 1
