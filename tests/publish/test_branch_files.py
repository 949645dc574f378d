"""What people put on the branch of the versions stays there, and what they changed is never overwritten in silence."""

from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.publish.git import files_at, git, read_at
from tasks.publish.publish import Publication, compose_commit, write_tree

TIP = "refs/remotes/origin/dataset"


def commit_code(repository: Path, **files: str | None) -> None:
    """A commit of the deployed code; None removes a file. Names have `_` for `.`."""
    for name, content in files.items():
        path = repository / name.replace("_", ".")
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "code")


def add_by_hand(repository: Path, **files: str) -> None:
    """A commit that somebody pushed to the branch."""
    contents = {name.replace("_", "."): content.encode() for name, content in files.items()}
    tree = write_tree(repository, TIP, contents)
    git(repository, "update-ref", TIP, git(repository, "commit-tree", tree, "-p", TIP, "-m", "by hand"))


def publish_next(repository: Path, card: str) -> list[str]:
    """The files of the next version."""
    files = {"README.md": card.encode(), "params.yaml": b"profile: test\n", "dvc.lock": b""}
    commit = compose_commit(repository, Publication(f"dataset/{card}", card, files))
    git(repository, "update-ref", TIP, commit)
    return files_at(repository, commit)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Code, a version of it, and two files that somebody added to the branch."""
    git(tmp_path, "init", "-q", "-b", "main")
    commit_code(tmp_path, code_py="one", params_yaml="profile: test\n")
    assert publish_next(tmp_path, "one") == ["README.md", "code.py", "dvc.lock", "params.yaml"]
    add_by_hand(tmp_path, CITATION_cff="cite us", **{"notes in words_md": "ours"})
    return tmp_path


def test_what_people_added_is_kept_and_what_left_the_code_is_not(repository: Path):
    commit_code(repository, code_py=None, new_py="two")
    kept = ["CITATION.cff", "README.md", "dvc.lock", "new.py", "notes in words.md", "params.yaml"]
    assert publish_next(repository, "two") == kept
    add_by_hand(repository, CITATION_cff="cite us so")
    assert publish_next(repository, "three") == kept
    assert read_at(repository, TIP, "CITATION.cff") == b"cite us so"
    assert git(repository, "rev-list", "--count", TIP) == "5"


@pytest.mark.parametrize("name", ["README_md", "code_py"])
def test_a_file_that_was_changed_by_hand_stops_the_next_version(name: str, repository: Path):
    add_by_hand(repository, **{name: "mine"})
    with pytest.raises(DataError, match=rf"dataset: {name.replace('_', '.')} changed there by hand.*git revert"):
        publish_next(repository, "two")


def test_code_that_takes_the_name_of_a_file_that_people_added_stops_the_next_version(repository: Path):
    commit_code(repository, CITATION_cff="the factory's own")
    with pytest.raises(DataError, match=r"dataset: CITATION\.cff changed there by hand"):
        publish_next(repository, "two")
