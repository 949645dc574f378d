"""Windows land in params.yaml without touching anything else."""

from pathlib import Path

import pytest
import yaml

from tasks.calibrate.params_file import set_windows
from tasks.config import Window
from tasks.errors import ConfigError

WINDOWS = {"semantic": Window(low=0.1, high=0.2), "caption": Window(low=0.3, high=0.4)}
VALUES = {"semantic": {"low": 0.1, "high": 0.2}, "caption": {"low": 0.3, "high": 0.4}}


def test_every_other_value_and_every_comment_of_params_yaml_stays(project: Path):
    text = (project / "params.yaml").read_text()
    changed = set_windows(text, WINDOWS)
    before, after = yaml.safe_load(text), yaml.safe_load(changed)
    assert after["mine"].pop("windows") == VALUES
    before["mine"].pop("windows")
    assert after == before and list(after) == list(before)

    def comments(content: str) -> list[str]:
        return ["#" + line.partition("#")[2] for line in content.splitlines() if "#" in line]

    assert comments(changed) == comments(text)
    assert set_windows(changed, WINDOWS) == changed


def test_lines_beside_the_windows_stay_byte_for_byte():
    text = """\
# first
select: {limit: null, name: "a"}  # quoted
mine:
  windows:  # by hand
    semantic: {low: 0.7, high: 0.8}  # why
    caption: {low: 0.5, high: 0.6}
  # the next one
  backend: blocked
"""
    expected = text.replace("{low: 0.7, high: 0.8}", "{low: 0.1, high: 0.2}")
    assert set_windows(text, WINDOWS) == expected.replace("{low: 0.5, high: 0.6}", "{low: 0.3, high: 0.4}")


@pytest.mark.parametrize("mine", ["mine: {windows: {}}", "mine:\n  windows:", "mine:\n  backend: blocked"])
def test_windows_are_added_where_there_are_none(mine: str):
    assert yaml.safe_load(set_windows(mine + "\n", WINDOWS))["mine"]["windows"] == VALUES


def test_a_file_in_block_style_is_changed_too(project: Path):
    text = yaml.safe_dump(yaml.safe_load((project / "params.yaml").read_text()), sort_keys=False)
    assert yaml.safe_load(set_windows(text, WINDOWS))["mine"]["windows"] == VALUES


def test_a_file_without_the_section_is_refused():
    with pytest.raises(ConfigError, match="no section 'mine'"):
        set_windows("select:\n  a: 1\n", WINDOWS)
