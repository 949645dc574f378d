"""Profiles are files beside params.yaml; what they say of their windows is for a warning, not a parameter."""

import logging
from pathlib import Path

import pytest
import yaml

from tasks.config import is_profile, load_params, parse_params, read_raw, resolve, uncalibrated_windows
from tasks.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path, project: Path) -> Path:
    """A folder with params.yaml alone."""
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    return tmp_path


def add_profile(folder: Path, name: str, text: str) -> None:
    (folder / "tasks" / "profiles").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / "profiles" / f"{name}.yaml").write_text(text)


def test_profiles_beside_params_yaml_are_used_else_those_of_the_code(folder: Path):
    assert load_params(folder / "params.yaml", "small").train.steps == 1000
    add_profile(folder, "ours", "mine: {neighbours: 3}\n")
    assert load_params(folder / "params.yaml", "ours").mine.neighbours == 3
    with pytest.raises(ConfigError, match=r"no profile 'small'; known: \['ours'\]"):
        load_params(folder / "params.yaml", "small")


def test_a_profile_in_params_yaml_works_for_one_release_and_warns(folder: Path, caplog: pytest.LogCaptureFixture):
    own = {"small": {"mine": {"neighbours": 4}}, "ours": {"mine": {"neighbours": 3}}, "bare": None}
    with (folder / "params.yaml").open("a") as file:
        file.write(yaml.safe_dump({"profiles": own}))
    with caplog.at_level(logging.WARNING):
        small = load_params(folder / "params.yaml", "small")
    assert (small.mine.neighbours, small.train.steps) == (4, 10), "it replaces the file of its name"
    assert "key 'profiles' is deprecated" in caplog.text and "['bare', 'ours', 'small']" in caplog.text
    assert load_params(folder / "params.yaml", "ours").mine.neighbours == 3
    assert load_params(folder / "params.yaml", "bare").profile == "bare"
    assert load_params(folder / "params.yaml", "test").mine.neighbours == 8


def test_profile_files_are_told_by_their_path():
    assert is_profile("tasks/profiles/small.yaml")
    assert not any(map(is_profile, ("tasks/profiles/a/b.yaml", "other/tasks/profiles/a.yaml", "tasks/profiles/a.txt")))


def test_profiles_with_guessed_windows_say_so_and_the_parameters_do_not(project: Path):
    raw = read_raw(project / "params.yaml")
    for profile in ("small", "production"):
        assert uncalibrated_windows(raw, profile) == ["semantic", "pattern", "caption"]
        assert parse_params(resolve(raw, profile)).profile == profile
    assert uncalibrated_windows(raw, "demo") == uncalibrated_windows(raw, None) == []
    given = {"mine": {"windows": {"pattern": {"low": 0.5, "high": 0.9}}}}
    assert uncalibrated_windows(raw, "small", given) == ["semantic", "caption"]


@pytest.mark.parametrize("roles", ["semantic", ["semantik"]])
def test_guessed_windows_of_no_encoder_are_refused(roles: object, folder: Path):
    add_profile(folder, "ours", yaml.safe_dump({"uncalibrated_windows": roles}))
    with pytest.raises(ConfigError, match="profile 'ours': 'uncalibrated_windows'"):
        read_raw(folder / "params.yaml")


def test_a_profile_is_readable(project: Path):
    for path in [project / "params.yaml", *(project / "tasks" / "profiles").glob("*.yaml")]:
        lines = path.read_text().splitlines()
        assert max(map(len, lines)) <= 120 and any(line.startswith("#") for line in lines), path
