"""Prompt sets: every shipped one is complete, every file that captioning reads is in the hash, errors name the file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ConfigError
from tasks.prompts.prompt_set import (
    FOLDER,
    fill_template,
    prompt_set_names,
    read_prompt,
    read_prompt_file,
    read_prompt_set,
    sample_demonstrations,
)

# Texts written with a set are stored with its hash; the hash of a shipped set changes only when its prompts do.
HASHES = {
    "plain": "b9a05a68b04f1377e7ec0a2c99b06b133efba133501e767b56f4f28b25520471",
    "standard": "953f04c7106107fd4c3e303d020f5e996c35f245140cd870fad5727b24a19e0a",
    "tiny": "95b866d80993a3f52d15357f73b53288ca40a84246718c35c1cc18fdb5cb8d2c",
}
FILES = ("describe.txt", "write.txt", "retry.txt", "describe.schema.json", "demonstrations.jsonl", "rules.json")


def test_the_hashes_of_the_shipped_sets_are_known():
    assert {name: read_prompt_set(name).sha256 for name in prompt_set_names()} == HASHES


@pytest.mark.parametrize("name", sorted(HASHES))
def test_every_shipped_set_is_complete(name: str):
    prompts = read_prompt_set(name)
    assert prompts.describe and read_prompt(name, "caption") and "{instruction}" in read_prompt(name, "judge")
    assert "{" not in prompts.description_request(80)  # every field is filled


@pytest.fixture
def copied_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a set `mine` with the files of 'standard'."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes((FOLDER / "standard" / name).read_bytes())
    monkeypatch.setattr("tasks.prompts.prompt_set.FOLDER", tmp_path)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_captioning_reads_is_in_the_hash(copied_set: Path, name: str):
    before = read_prompt_set("mine").sha256
    assert before == HASHES["standard"]
    old = {"rules.json": b"writing", "describe.schema.json": b"what"}.get(name, b"at")
    (copied_set / name).write_bytes((copied_set / name).read_bytes().replace(old, b"et", 1))
    assert read_prompt_set("mine").sha256 != before


def test_a_file_that_is_missing_or_wrong_is_named(copied_set: Path):
    with pytest.raises(ConfigError, match=r"no such prompt: .*none/describe.txt cannot be read .* one of \['mine'\]"):
        read_prompt_set("none")
    with pytest.raises(ConfigError, match=r"mine/judge.txt cannot be read"):
        read_prompt("mine", "judge")
    (copied_set / "judge.txt").write_text("Does it fit?\n")
    with pytest.raises(ConfigError, match=r"judge.txt lacks the fields \['{instruction}'\]"):
        read_prompt("mine", "judge")
    (copied_set / "demonstrations.jsonl").write_text('{"description": "a"\n')
    with pytest.raises(ConfigError, match="one JSON object a line"):
        read_prompt_set("mine")
    (copied_set / "demonstrations.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"demonstrations.jsonl cannot be read"):
        read_prompt_set("mine")


def test_a_prompt_ends_before_its_last_line_break(copied_set: Path):
    (copied_set / "judge.txt").write_text("Does it fit: {instruction}\n")
    assert read_prompt_file("mine", "judge.txt") == read_prompt("mine", "judge") + "\n"


@given(st.text(max_size=30), st.text(max_size=30))
def test_braces_in_the_values_of_a_template_stay(style: str, description: str):
    text = fill_template("a {style} b {description} {c} {", style=style, description=description)
    assert text == f"a {style} b {description} {{c}} {{"


def test_demonstrations_are_drawn_by_seed_pair_and_style():
    demonstrations = read_prompt_set("standard").demonstrations
    drawn = sample_demonstrations(demonstrations, "keep", 5, 1, "p")
    assert len(drawn) == 5 and all("keep" in d["texts"] for d in drawn)
    assert drawn == sample_demonstrations(demonstrations, "keep", 5, 1, "p")
    by_seed = [sample_demonstrations(demonstrations, "keep", 5, seed, "p") for seed in range(9)]
    assert len({repr(rows) for rows in by_seed}) == 9


@pytest.mark.parametrize("name", ["../tiny", "tiny/../tiny", "/etc", "tiny/", "", ".", "..", "a\nb", "tiny\0"])
def test_a_name_that_leads_out_of_the_prompt_sets_is_refused(name: str):
    with pytest.raises(ConfigError, match="is no name of a prompt set"):
        read_prompt_set(name)
