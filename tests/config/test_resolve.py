"""Parameters: wrong ones are refused with a name and a next step; each number has one default; profiles are applied."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tasks.config import Params, load_params, overlay, parse_params, read_raw, resolve
from tasks.errors import ConfigError
from tests.support.parameters import params_with, raw_params

PROFILES = ["demo", "demo_large", "production", "small", "test"]


def set_twice(section: type[BaseModel], values: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys that params.yaml sets although their field has a default too; entries of lists are no keys."""
    found = []
    for name, field in section.model_fields.items():
        key = field.alias or name
        if key not in values:
            continue
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += set_twice(inner, values[key], f"{prefix}{key}.")
        elif not field.is_required():
            found.append(f"{prefix}{key}")
    return found


def fields_of(section: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    """(key, field) of all parameters with fixed keys."""
    out: list[tuple[str, Any]] = []
    for name, field in section.model_fields.items():
        key, inner = f"{prefix}{field.alias or name}", field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            out += fields_of(inner, f"{key}.")
        else:
            out.append((key, field))
    return out


def test_no_number_has_two_defaults(project: Path):
    assert set_twice(Params, yaml.safe_load((project / "params.yaml").read_text())) == []


def test_the_check_for_two_defaults_finds_one():
    class Inner(BaseModel):
        one: int = 1
        two: int

    class Outer(BaseModel):
        inner: Inner

    assert set_twice(Outer, {"inner": {"one": 1, "two": 2}}) == ["inner.one"]


def test_every_parameter_is_described_in_sentences():
    for key, field in fields_of(Params):
        assert field.description and field.description[0].isupper() and field.description.endswith("."), key


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_resolves(profile: str):
    params = load_params("params.yaml", profile)
    assert params.profile == profile
    assert parse_params(params.model_dump(mode="json", by_alias=True)) == params


def test_an_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=r"unknown key 'mine.neighbors'; known in 'mine': "
        r"\['backend', 'memory_mib', 'neighbours', 'part_images', 'windows'\]",
    ):
        params_with(mine={"neighbors": 5})
    with pytest.raises(ConfigError, match="did you mean 'neighbours'"):
        params_with(mine={"neighbors": 5})


def test_an_unknown_key_of_a_list_entry_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown key 'ingest.sources.0.licence'; known in .*'license_code'"):
        params_with(ingest={"sources": [{"name": "a", "path": "/a", "licence": "x"}]})


def test_a_wrong_value_is_named():
    with pytest.raises(ConfigError, match="'judge.threshold' is 1.5"):
        params_with(judge={"threshold": 1.5})


def test_a_missing_key_says_where_to_copy_it_from():
    raw = raw_params()
    del raw["mine"]["neighbours"], raw["validate"]["pairs"]["rows_min"]
    with pytest.raises(ConfigError) as error:
        parse_params(raw)
    remedy = "copy it from params.yaml of this release"
    assert str(error.value) == (
        f"params: missing key 'mine.neighbours'; {remedy}; missing key 'validate.pairs.rows_min'; {remedy}"
    )


def test_a_missing_key_of_a_list_entry_is_not_to_be_copied():
    with pytest.raises(ConfigError, match=r"missing key 'ingest.sources.0.path'; give it, or remove the entry"):
        params_with(ingest={"sources": [{"name": "a"}]})


def test_an_unknown_profile_names_the_known_ones(project: Path):
    with pytest.raises(
        ConfigError, match="no profile 'large'; known: .'demo', 'demo_large', 'production', 'small', 'test'"
    ):
        resolve(read_raw(project / "params.yaml"), "large")


def test_overlay_merges_mappings_and_replaces_the_rest():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert overlay(base, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}, "d": 4}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_a_missing_file_says_where_to_run(tmp_path: Path):
    with pytest.raises(ConfigError, match="run from the project's root"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(("content", "message"), [("- a\n", "expected a mapping"), ("a: [\n", "not YAML")])
def test_a_file_that_is_no_mapping_is_refused(content: str, message: str, tmp_path: Path):
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_params(tmp_path / "params.yaml")


def test_a_runs_own_file_takes_no_other_profile(tmp_path: Path):
    raw = raw_params("test", open_run={"date": "2026-11-16", "batch": "2026.11.16"}, mine={"neighbours": 5})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    assert load_params(tmp_path / "params.yaml").mine.neighbours == 5
    assert load_params(tmp_path / "params.yaml", "test").mine.neighbours == 5, "the run's own value stays"
    with pytest.raises(
        ConfigError, match="batch 2026.11.16 and was made with profile 'test'.* unset MEGAPAIRS_PROFILE"
    ):
        load_params(tmp_path / "params.yaml", "demo")
