"""The trigger form: every field typed, described and checked, made from params.yaml and tasks/config."""

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError

from tasks.config import load_params, resolve


@pytest.fixture
def forms() -> dict[str, Any]:
    from megapairs.form import dataset_params, model_params

    return {"dataset": dataset_params(), "model": model_params()}


def test_every_field_has_a_type_and_a_sentence(forms: dict[str, Any]):
    for form in forms.values():
        for name, param in form.items():
            assert param.schema["type"], name
            assert len(param.description or "") > 20, name
            assert (param.description or "").count("empty") <= 1, f"{name}: one meaning of an empty field"
            param.resolve()  # the preset itself is valid


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("limit", 60, 0),
        ("limit", 1, "many"),
        ("limit", "60", "0"),  # as the text box gives it
        ("limit", "1000000000", "1e9"),
        ("limit", None, -1),
        ("limit", 1_000_000_000, "-1"),
        ("neighbours", "12", "12.5"),
        ("judge_threshold", "0.5", "half"),
        ("judge_threshold", ".5", "-0.5"),
        ("profile", "test", "tset"),
        ("date", "2026-11-24", "24.11.2026"),
        ("neighbours", 12, -1),
        ("window_semantic", {"low": 0.8, "high": 0.96}, {"low": 0.8}),
        ("window_semantic", {"low": -1, "high": 1}, {"low": 0.8, "high": 7}),
        ("sources", [{"name": "shop", "path": "/data/shop"}], [{"path": "/data/shop"}]),
        ("sources", [{"name": "shop", "path": "/data/shop"}], [{"name": "shop", "path": "/data", "licence": "x"}]),
        (
            "sources",
            [{"name": "b", "path": "s3://bucket/week", "endpoint_url": "https://s3.example.org"}],
            [{"name": "b", "path": "s3://b", "endpoint_url": "s3"}],
        ),
        (
            "sources",
            [{"name": "t", "path": "urls.parquet", "contact": "me@example.org", "delay_s": 2}],
            [{"name": "t", "path": "a.csv", "delay_s": -1}],
        ),
        (
            "sources",
            [{"name": "t", "path": "s3://b/*.tar", "kind": "tars", "columns": {"caption": "alt"}}],
            [{"name": "t", "path": "x", "kind": "zip"}],
        ),
        ("dry_run", True, "yes"),
        ("judge_threshold", 0.5, 1.5),
    ],
)
def test_a_wrong_value_is_refused_by_the_form(forms: dict[str, Any], name: str, good: Any, bad: Any):
    param = forms["dataset"][name]
    param.resolve(value=good)
    with pytest.raises(ParamValidationError):
        param.resolve(value=bad)


def test_an_empty_form_changes_nothing_but_names_its_profile(forms: dict[str, Any]):
    from megapairs.form import changes_from

    for form in forms.values():
        presets = {name: param.value for name, param in form.items()}
        assert changes_from(presets) == {"profile": "demo"}
        assert changes_from({**presets, "sources": [], "window_semantic": {}, "date": ""}) == {"profile": "demo"}


def test_what_is_filled_in_lands_in_its_section_and_resolves():
    from megapairs.form import changes_from

    given = {
        "limit": 60,
        "window_pattern": {"low": 0.5, "high": 0.9},
        "mine.neighbours": 3,
        "caption": {"batch_pairs": 8},
        "dry_run": True,
    }
    changes = changes_from(given)
    assert changes == {
        "open_run": {"limit": 60, "dry_run": True},
        "mine": {"windows": {"pattern": {"low": 0.5, "high": 0.9}}, "neighbours": 3},
        "caption": {"batch_pairs": 8},
    }
    raw = resolve(load_params().model_dump(by_alias=True, mode="json"), None, changes)
    assert raw["mine"]["windows"]["semantic"] and raw["mine"]["windows"]["pattern"]["low"] == 0.5


def test_numbers_are_text_boxes_and_arrive_as_numbers(forms: dict[str, Any]):
    """Airflow's number box turns 0 and -1 into 1 and 1e9 into an empty field, without a word."""
    from megapairs.form import changes_from

    numbers = [p for form in forms.values() for p in form.values() if {"integer", "number"} & set(p.schema["type"])]
    assert numbers and all(p.schema["type"][1] == "string" for p in numbers)  # the first kind that is not null decides
    given = {"limit": "60", "judge_threshold": "0.5", "learning_rate": "1e-4", "sources": "12"}
    assert changes_from(given) == {
        "open_run": {"limit": 60},
        "judge_threshold": 0.5,
        "train": {"learning_rate": 0.0001},
        "ingest": {"sources": "12"},
    }


def test_an_unknown_name_travels_on_for_open_run_to_refuse():
    from megapairs.form import changes_from

    assert changes_from({"lmit": 60, "other": None}) == {"lmit": 60, "other": None}


def test_every_field_of_the_form_is_a_parameter(project: Any):
    from megapairs.form import FIELD_KEYS, schema_at

    for key in FIELD_KEYS.values():
        assert schema_at(key)["type"]
    with pytest.raises(KeyError):
        schema_at("mine.neighbors")


def test_the_forms_defaults_are_those_of_the_deployed_commit(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    from megapairs.form import dataset_params

    from tasks.publish.git import git

    clone = tmp_path / "dataset"
    (clone / "tasks" / "profiles").mkdir(parents=True)
    text = Path("params.yaml").read_text()
    for old, new in (("dataset: sample-world", "dataset: shop"), ("profile: demo", "profile: own")):
        text = text.replace(old, new)
    (clone / "params.yaml").write_text(text)
    (clone / "tasks" / "profiles" / "own.yaml").write_text("# My own images.\n{}\n")
    git(clone, "init", "-q")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "deployed")
    monkeypatch.delenv("MEGAPAIRS_DEFAULT_PROFILE", raising=False)
    monkeypatch.setenv("MEGAPAIRS_DATASET", str(clone))
    monkeypatch.setenv("MEGAPAIRS_DEPLOYED", "HEAD")
    form = dataset_params()
    assert "else shop (open_run.dataset)" in form["dataset"].description
    assert form["profile"].value == "own" and form["profile"].schema["enum"] == ["own"]
    monkeypatch.setenv("MEGAPAIRS_DEPLOYED", "no-such-commit")
    assert "else sample-world" in dataset_params()["dataset"].description, "without it, those of the code's folder"
