"""Airflow's code and the stages' code: a difference that matters is named, another one is not."""

from pathlib import Path

import pytest

from tasks.publish.code_versions import code_difference
from tasks.publish.git import git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main", str(tmp_path))
    commit(tmp_path, "tasks/select.py", "one")
    return tmp_path


def commit(repository: Path, path: str, content: str) -> str:
    (repository / path).parent.mkdir(parents=True, exist_ok=True)
    (repository / path).write_text(content)
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", path)
    return git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("path", ["tasks/select.py", "plugins/megapairs/form.py", "dags/a.py", "params.yaml"])
def test_code_that_differs_is_named(repository: Path, path: str):
    before = git(repository, "rev-parse", "HEAD")
    after = commit(repository, path, "two")
    for airflow, stages in ((before, after), (after, before)):  # an older and a newer Airflow
        said = code_difference(repository, airflow, stages)
        assert said is not None and path in said
        assert f"form are of commit {airflow[:12]}, the stages of {stages[:12]}" in said


@pytest.mark.parametrize("path", ["README.md", ".dvc/config", "docs/index.md", "version.json"])
def test_other_files_and_unknown_commits_say_nothing(repository: Path, path: str):
    before = git(repository, "rev-parse", "HEAD")
    after = commit(repository, path, "two")
    assert code_difference(repository, before, after) is None
    assert code_difference(repository, "", after) is None
    assert code_difference(repository, after, after) is None


def test_a_commit_that_the_deployment_does_not_know_is_said(repository: Path):
    said = code_difference(repository, "0123456789" * 4, git(repository, "rev-parse", "HEAD"))
    assert said is not None and "does not know the first" in said


def test_many_files_are_cut(repository: Path):
    before = git(repository, "rev-parse", "HEAD")
    for n in range(8):
        (repository / "tasks" / f"{n}.py").write_text("x")
    after = commit(repository, "tasks/8.py", "x")
    said = code_difference(repository, before, after)
    assert said is not None and "and 4 more differ" in said
