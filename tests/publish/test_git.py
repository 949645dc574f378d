"""Git as a child process: names of versions, files at a commit, and what a failure says."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import TransientError
from tasks.publish.git import (
    files_at,
    git,
    is_ancestor,
    next_free_name,
    publishing_lock,
    read_at,
    resolve_ref,
    tags,
    version_key,
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits: a file, then another one in a folder."""
    git(tmp_path, "init", "-q", "-b", "main")
    for name in ("one.txt", "folder/two words.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-q", "-m", name)
    return tmp_path


def test_names_of_a_day_count_up_and_sort_by_number():
    assert next_free_name([], "2026-11-16") == "2026.11.16"
    taken = ["dataset/2026.11.16", *(f"dataset/2026.11.16.{n}" for n in range(2, 11))]
    assert next_free_name(taken, "2026-11-16") == "2026.11.16.11"
    assert sorted(sorted(taken), key=version_key) == taken


def test_files_are_read_at_a_commit(repository: Path):
    assert files_at(repository, "main") == ["folder/two words.txt", "one.txt"]
    assert read_at(repository, "main", "folder/two words.txt") == b"folder/two words.txt"
    assert read_at(repository, "main~1", "folder/two words.txt") is None


def test_refs_and_ancestors(repository: Path):
    assert resolve_ref(repository, "main") == git(repository, "rev-parse", "HEAD")
    assert resolve_ref(repository, "refs/tags/none") is None
    assert is_ancestor(repository, "main~1", "main") and not is_ancestor(repository, "main", "main~1")


def test_a_failure_names_the_command_and_gits_last_lines(repository: Path):
    with pytest.raises(TransientError, match=r"git checkout nowhere in .*: exit 1: error: pathspec 'nowhere'"):
        git(repository, "checkout", "nowhere")


def test_the_publishing_lock_is_waited_for_and_then_refused(repository: Path):
    hold = (
        "import sys; from pathlib import Path; from tasks.publish.git import publishing_lock\n"
        "with publishing_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(repository)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(TransientError, match="another run has been publishing for 0 s"):
            publishing_lock(repository, timeout_s=0.1).__enter__()
        holder.communicate("")
    with publishing_lock(repository, timeout_s=0.1):
        assert (repository / ".git" / "publish.lock").exists()


def test_versions_are_ordered_by_ancestry_and_on_one_commit_by_number(repository: Path):
    commit = git(repository, "rev-parse", "main")
    for name, at in (("2026.12.07", "main~1"), ("2026.11.30.10", "main"), ("2026.11.30.9", "main")):
        git(repository, "tag", "-a", "-m", name, f"dataset/{name}", at)
    later = git(repository, "commit-tree", f"{commit}^{{tree}}", "-p", commit, "-m", "later")
    git(repository, "tag", "dataset/2026.01.01", later)
    assert tags(repository, "dataset") == [
        "dataset/2026.12.07", "dataset/2026.11.30.9", "dataset/2026.11.30.10", "dataset/2026.01.01"
    ]  # fmt: skip
    assert tags(repository, "model") == []


def test_a_version_that_was_rewritten_after_the_newest_is_not_the_newest(repository: Path):
    """As `purge` rewrites an old version: on its own data, long after others have continued it."""
    first, tree = git(repository, "rev-parse", "main"), git(repository, "rev-parse", "main^{tree}")
    between = git(repository, "commit-tree", tree, "-p", first, "-m", "a model")
    second = git(repository, "commit-tree", tree, "-p", between, "-m", "the next week")
    rewritten = git(repository, "commit-tree", tree, "-p", first, "-m", "without an image")
    for name, at in (("2026.11.01", first), ("2026.11.08", second), ("2026.11.01.2", rewritten)):
        git(repository, "tag", f"dataset/{name}", at)
    names = ["2026.11.01", "2026.11.01.2", "2026.11.08"]
    assert tags(repository, "dataset") == [f"dataset/{name}" for name in names]
    git(repository, "tag", "-d", "dataset/2026.11.01")
    assert tags(repository, "dataset") == [f"dataset/{name}" for name in names[1:]]
