"""The trigger form's values: names, paths, and what must exist."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.config import SourceConfig, expand_sources
from tasks.errors import ConfigError
from tasks.models.retrievers import onnx_export
from tasks.publish.run_conf import changes_from_conf, gate_follows_threshold, require_paths, with_absolute_paths
from tests.support.parameters import params_with

RAW = {
    "profile": "demo",
    "open_run": {},
    "ingest": {"sources": [{"name": "shop", "path": "/shop", "license_code": "CC0-1.0"}]},
    "mine": {},
    "profiles": {},
}


def test_form_values_nested_dotted_and_plain():
    conf = {
        "profile": "test",
        "limit": 5,
        "date": None,
        "mine.neighbours": 7,
        "mine": {"backend": "faiss-flat"},
        "sources": "/photos",
    }
    profile, changes = changes_from_conf(conf, RAW)
    assert profile == "test"
    assert changes == {
        "open_run": {"limit": 5},
        "mine": {"neighbours": 7, "backend": "faiss-flat"},
        "ingest": {"sources": [{"name": "photos", "path": "/photos"}]},
    }


@pytest.mark.parametrize(
    ("given", "meant"),
    [("lmit", "limit"), ("jugde_threshold", "judge_threshold"), ("window_semntic", "window_semantic")],
)
def test_an_unknown_name_is_refused_with_the_name_that_was_meant(given: str, meant: str):
    with pytest.raises(ConfigError, match=f"unknown key '{given}'.*did you mean '{meant}'"):
        changes_from_conf({given: 5}, RAW)


def test_the_forms_names_work_without_the_form():
    conf = {"judge_threshold": 0.5, "window_semantic": {"low": 0.1, "high": 0.9}, "caption_share_min": 0, "steps": None}
    assert changes_from_conf(conf, RAW)[1] == {
        "judge": {"threshold": 0.5},
        "mine": {"windows": {"semantic": {"low": 0.1, "high": 0.9}}},
        "validate": {"images": {"caption_share_min": 0}},
    }


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/data/my images", "my-images"),
        ("/data/Möbel", "Mobel"),
        ("/data/写真", "source"),
        ("/data/_x", "x"),
        ("/", "source"),
    ],
)
def test_a_source_has_a_valid_name_whatever_its_folder_is_called(folder: str, name: str):
    (source,) = expand_sources(folder, [])
    assert source["name"] == name and SourceConfig(**source).name == name


@pytest.mark.parametrize(
    ("conf", "follows"),
    [
        ({"judge_threshold": "0"}, True),
        ({"judge_threshold": 0.5}, True),
        ({"judge_threshold": 0.9}, False),  # above the gate's number
        ({"judge_threshold": ""}, False),
        ({"judge_threshold": "much"}, False),  # the check of the parameters names it
        ({"judge.threshold": 0.5}, False),  # who names the parameter names the gate's, too
        ({"judge_threshold": 0.5, "validate.triplets.yes_min": 0.4}, False),
    ],
)
def test_the_gate_follows_the_forms_threshold_where_that_is_lower(conf: dict[str, Any], follows: bool):
    raw = {"judge": {}, "validate": {}}
    own = {"validate": {"triplets": {"yes_min": 0.85}}}
    _, changes = changes_from_conf(conf, raw)
    after, sentences = gate_follows_threshold(conf, changes, own)
    assert (after != changes) == bool(sentences) == follows
    if follows:
        assert after["validate"]["triplets"]["yes_min"] == float(conf["judge_threshold"])
        assert "not 0.85; it follows the form's judge_threshold" in sentences[0]


def test_a_source_keeps_its_licence_when_params_know_its_path():
    assert expand_sources("/shop", RAW["ingest"]["sources"]) == RAW["ingest"]["sources"]  # type: ignore[index]


def test_named_benchmarks_are_found_below_the_root_and_missed_by_name(tmp_path: Path):
    named = [
        {"name": "circo", "protocol": "circo", "path": "benchmarks/circo"},
        {"name": "far", "protocol": "cirr", "path": "s3://b/cirr"},
    ]
    absolute = with_absolute_paths({"ingest": {}, "evaluate": {"benchmark": named, "truth": "truth.jsonl"}}, tmp_path)[
        "evaluate"
    ]
    assert [b["path"] for b in absolute["benchmark"]] == [
        str(tmp_path / "benchmarks/circo"),
        "s3://b/cirr",
    ] and absolute["truth"] == str(tmp_path / "truth.jsonl")
    assert with_absolute_paths({"ingest": {}, "evaluate": {"benchmark": None}}, tmp_path)["evaluate"] == {
        "benchmark": None
    }
    params = params_with(evaluate={"benchmark": absolute["benchmark"]})
    with pytest.raises(ConfigError, match=r"evaluate.benchmark.circo: no such folder or file .*benchmarks/circo"):
        require_paths(params, "model")
    (tmp_path / "benchmarks" / "circo").mkdir(parents=True)
    require_paths(params, "model")


def test_lists_of_images_are_found_below_the_root(tmp_path: Path):
    lists = {
        "blocklists": ["block.txt", "/etc/block.txt"],
        "benchmark_hashes": ["circo.jsonl"],
        "takedown": "takedown.txt",
    }
    absolute = with_absolute_paths({"ingest": lists, "evaluate": {}}, tmp_path)["ingest"]
    assert absolute["blocklists"] == [str(tmp_path / "block.txt"), "/etc/block.txt"]
    assert (absolute["benchmark_hashes"], absolute["takedown"]) == (
        [str(tmp_path / "circo.jsonl")],
        str(tmp_path / "takedown.txt"),
    )
    assert with_absolute_paths({"ingest": {"takedown": None}, "evaluate": {}}, tmp_path)["ingest"]["takedown"] is None


@pytest.mark.parametrize("sources", ["photos", ["photos"], [{"name": "a"}], [{"path": 5}], {"path": "x"}])
def test_sources_of_a_wrong_form_are_left_for_the_check_of_the_parameters(sources: Any, tmp_path: Path):
    raw = {"ingest": {"sources": sources}, "evaluate": {}}
    assert with_absolute_paths(raw, tmp_path)["ingest"]["sources"] == sources


def test_a_model_run_that_is_to_export_to_onnx_needs_the_extra_before_it_trains(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx", "no_such_package"))
    params = params_with(promote={"onnx": True})
    with pytest.raises(ConfigError, match=r"no_such_package not installed; `make install EXTRAS=onnx`"):
        require_paths(params, "model")
    require_paths(params_with(promote={"onnx": False}), "model")


@pytest.mark.parametrize(
    ("model_type", "train", "promote", "said"),
    [
        ("qwen2_vl", {"locked_steps": 0}, {"onnx": True}, "a multimodal language model: only models of the CLIP type"),
        (
            "qwen2_vl",
            {
                "locked_steps": 0,
                "datasets": [{"name": "c", "format": "rows", "path": "caption_to_image", "keep_base": 10.0}],
            },
            {},
            r"keep_base' is 10.* set keep_base to 0",
        ),
        ("llava_next", {"locked_steps": 3}, {}, r"'train.locked_steps' is 3 .* no tower can be locked"),
        (
            "clip",
            {"locked_steps": 0, "lora": {"rank": 4}},
            {},
            "'train.lora' is rank 4 .* trained as a whole",
        ),
        ("qwen2_vl", {"locked_steps": 0, "lora": {"rank": 4}}, {}, None),
        ("clip", {}, {}, None),
        (None, {"locked_steps": 0}, {}, None),  # training says what is wrong with such a folder
    ],
)
def test_a_recipe_that_does_not_suit_the_base_models_type_is_refused_before_anything_is_trained(
    model_type: str | None, train: dict[str, Any], promote: dict[str, Any], said: str | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(onnx_export, "PACKAGES", ())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}) if model_type else "{")
    params = params_with(train={"base_model": str(tmp_path), **train}, promote=promote)
    if said is None:
        require_paths(params, "model")
    else:
        with pytest.raises(ConfigError, match=said):
            require_paths(params, "model")


def test_the_type_of_a_name_that_the_hub_does_not_answer_for_is_left_to_training():
    require_paths(params_with(train={"base_model": "someone/a-model", "locked_steps": 0}), "model")
