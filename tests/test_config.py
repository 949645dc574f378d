"""Parameters: wrong ones are refused with a name and a next step; profiles lie over defaults."""

import pytest

from tasks.config import load_params, overlay, parse_params, read_raw, resolve
from tasks.errors import ConfigError


def raw() -> dict:
    from tests.conftest import PROJECT

    return read_raw(PROJECT / "params.yaml")


@pytest.mark.parametrize("profile", ["test", "demo", "small", "production"])
def test_every_profile_resolves(profile: str):
    assert parse_params(resolve(raw(), profile)).profile == profile


def test_an_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=r"unknown key 'mine.neighbors'; known in 'mine': \['backend', 'memory_mib', 'neighbours', 'windows'\]",
    ):
        parse_params(resolve(raw(), "demo", {"mine": {"neighbors": 5}}))


def test_a_wrong_value_is_named():
    with pytest.raises(ConfigError, match="'judge.threshold' is 1.5"):
        parse_params(resolve(raw(), "demo", {"judge": {"threshold": 1.5}}))


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ConfigError, match="no profile 'large'; known: .'demo', 'production', 'small', 'test'"):
        resolve(raw(), "large")


def test_overlay_merges_mappings_and_replaces_the_rest():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 4}
    assert overlay(base, {"a": {"c": [3]}}) == {"a": {"b": 1, "c": [3]}, "d": 4}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 4}


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ConfigError, match="run from the project's root"):
        load_params(tmp_path / "params.yaml")
