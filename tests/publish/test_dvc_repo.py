"""DVC's cache and remote after a kill: what is damaged there is written again, and nothing is damaged by a kill."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.publish.dvc_repo import commit_outputs, dvc_repo, push_and_verify

CHANGES = ("open", "os.rename", "os.remove", "os.link")  # audit events of a change of the disk; all writes are opens


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A committed DVC project whose remote is a folder beside it, not yet pushed to."""
    from dvc.repo import Repo

    root = tmp_path / "project"
    root.mkdir()
    Repo.init(str(root), no_scm=True).close()
    (root / ".dvc" / "config").write_text(
        f"[core]\n    no_scm = True\n    remote = here\n['remote \"here\"']\n    url = {tmp_path / 'remote'}\n"
    )
    (root / "dvc.yaml").write_text("stages: {draw: {cmd: draw, outs: [data]}}\n")
    (root / "data").mkdir()
    (root / "data" / "red.txt").write_text("red")
    assert commit_outputs(root, ["draw"], [], None) == ["draw"]
    return root


def list_in(folder: Path) -> Path:
    [listing] = folder.rglob("*.dir")
    return listing


def objects_in(folder: Path) -> dict[str, bytes]:
    """Every whole object; what a killed process left under a temporary name is none."""
    return {p.parent.name + p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp"}


def run_in_fork(root: Path, folder: Path, kill_at: int | None) -> tuple[int, int]:
    """Push in a fork, which dies right before change number `kill_at` below `folder`; exit code, changes seen."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def on_event(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in CHANGES and str(args[0]).startswith(str(folder)):
                if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
                    return
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(on_event)
        code = 1
        try:
            push_and_verify(root)
            code = 0
        finally:
            os.write(writing, str(seen).encode())
            os._exit(code)
    os.close(writing)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reading) as pipe:
        return code, int(pipe.read() or 0)


def test_a_damaged_list_of_a_folder_is_written_again(project: Path):
    listing = list_in(project / ".dvc" / "cache")
    whole = listing.read_bytes()
    for content in (b"", whole[:20], whole):
        listing.chmod(0o644)
        listing.write_bytes(content)
        commit_outputs(project, ["draw"], [], None)
        assert listing.read_bytes() == whole


def test_a_damaged_list_in_the_remote_is_written_again(project: Path):
    remote = project.parent / "remote"
    push_and_verify(project)
    listing = list_in(remote)
    whole = listing.read_bytes()
    for content in (b"", whole[:20]):
        listing.chmod(0o644)
        listing.write_bytes(content)
        assert push_and_verify(project) == 2
        assert listing.read_bytes() == whole


def test_a_push_that_is_killed_leaves_no_damaged_object_and_is_done_by_the_next(project: Path):
    remote = project.parent / "remote"
    with dvc_repo(project):
        pass  # DVC is imported before the forks
    code, changes = run_in_fork(project, remote, None)
    assert code == 0 and changes >= 6  # per object at least: a clone is tried, a copy is written, it is moved
    expected = objects_in(remote)
    for kill_at in range(changes):
        for path in sorted(remote.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        assert run_in_fork(project, remote, kill_at)[0] == -signal.SIGKILL
        assert objects_in(remote).items() <= expected.items(), f"killed before change {kill_at}"
    assert run_in_fork(project, remote, None)[0] == 0
    assert objects_in(remote) == expected
