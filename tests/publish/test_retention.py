"""What `python -m tasks runs --prune` removes, and what it never touches."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.__main__ import main
from tasks.locks import exclusive, is_held
from tasks.models.llm.request_cache import RequestCache
from tasks.publish.deployment import configure_deployment
from tasks.publish.git import git
from tasks.publish.retention import OpenRun, Retention, unneeded_runs

OLD_S = 30 * 86_400


@pytest.fixture
def deployment(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment with two runs that opened: `old` has been idle for a month, `new` has not."""
    code = tmp_path / "code"
    for name in (".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project / name, code / name)
    git(code, "init", "-q")
    git(code, "add", "-A")
    git(code, "commit", "-q", "-m", "code")
    configure_deployment(
        tmp_path / "origin.git", tmp_path / "dataset", str(tmp_path / "remote"), tmp_path / "cache", checkout=code
    )
    monkeypatch.setenv("MEGAPAIRS_DATASET", str(tmp_path / "dataset"))
    monkeypatch.setenv("MEGAPAIRS_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MEGAPAIRS_CACHE", str(tmp_path / "replies"))
    for name in ("old", "new"):
        worktree = tmp_path / "runs" / name
        git(tmp_path / "dataset", "worktree", "add", "-q", "--detach", str(worktree), "HEAD")
        (worktree / ".run" / "locks").mkdir(parents=True)
        (worktree / ".run" / "locks" / "ingest").touch()
        opened = {"run_id": name, "kind": "dataset", "batch": "2026.01.05"}
        (worktree / ".run" / "opened.json").write_text(json.dumps(opened))
        shutil.copyfile(tmp_path / "dataset" / ".dvc" / "config.local", worktree / ".dvc" / "config.local")
    age(tmp_path / "runs" / "old")
    return tmp_path


def age(folder: Path) -> None:
    """Let every file be a month old."""
    then = time.time() - OLD_S
    for path in (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        os.utime(path, (then, then))


def runs(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = main(["runs", "--json", *words])
    assert code == 0
    return json.loads(capsys.readouterr().out)


def freed(result: dict[str, Any], key: str = "freed") -> dict[str, tuple[int, int]]:
    return {item["kind"]: (item["count"], item["size_bytes"]) for item in result[key]}


def test_a_dry_run_removes_nothing(deployment: Path, capsys: pytest.CaptureFixture[str]):
    result = runs(capsys, "--prune")
    assert [(run["run_id"], run["idle_days"] > 29) for run in result["runs"]] == [("old", True), ("new", False)]
    assert freed(result, "would_free")["worktrees"][0] == 1
    assert all(isinstance(number, int) for kind in freed(result, "would_free").values() for number in kind)
    assert sorted(p.name for p in (deployment / "runs").iterdir()) == ["new", "old"]


def test_the_idle_run_goes_and_its_room_is_told(deployment: Path, capsys: pytest.CaptureFixture[str]):
    (deployment / "runs" / "old" / "big").write_bytes(b"x" * 3_000_000)
    age(deployment / "runs" / "old")
    count, size = freed(runs(capsys, "--prune", "--yes"))["worktrees"]
    assert count == 1 and size > 3_000_000
    assert [p.name for p in (deployment / "runs").iterdir()] == ["new"]
    assert "old" not in git(deployment / "dataset", "worktree", "list")


@pytest.mark.parametrize("how", ["its lock is held", "--active"])
def test_an_active_run_stays_however_old(deployment: Path, capsys: pytest.CaptureFixture[str], how: str):
    stray = deployment / "cache" / "files" / "md5" / "ab" / "cdef"
    stray.parent.mkdir(parents=True)
    stray.write_text("an object that a working run may be about to name")
    if how == "--active":
        result = runs(capsys, "--prune", "--yes", "--active", "old")
    else:
        lock = deployment / "runs" / "old" / ".run" / "locks" / "ingest"
        with exclusive(lock, 0, "busy"):
            age(deployment / "runs" / "old")
            result = runs(capsys, "--prune", "--yes")
    assert (deployment / "runs" / "old" / "params.yaml").exists()
    assert freed(result)["worktrees"] == (0, 0)
    assert stray.exists() and "DVC cache" not in freed(result), "the cache is left alone while a run works"


def test_the_dvc_cache_keeps_what_tags_and_open_runs_need(deployment: Path, capsys: pytest.CaptureFixture[str]):
    clone, keep, drop = deployment / "dataset", {}, {}
    for name, place in (
        ("tagged", clone),
        ("open", deployment / "runs" / "new"),
        ("nobody's", deployment / "runs" / "old"),
    ):
        (place / "data").mkdir(exist_ok=True)
        (place / "data" / "table").write_text(name)
        subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "--force", "data/table"], cwd=place, check=True)
        md5 = (place / "data" / "table.dvc").read_text().split("md5: ")[1].split()[0]
        (drop if name == "nobody's" else keep)[name] = deployment / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    git(clone, "add", "-f", "data/table.dvc")
    git(clone, "commit", "-q", "-m", "a version")
    git(clone, "tag", "dataset/2026.01.01")
    git(clone, "push", "-q", "origin", "dataset/2026.01.01")
    git(clone, "reset", "-q", "--hard", "HEAD~1")
    age(deployment / "runs" / "old")
    count, size = freed(runs(capsys, "--prune", "--yes"))["DVC cache"]
    assert all(path.exists() for path in keep.values()) and not any(path.exists() for path in drop.values())
    assert (count, size) == (1, len("nobody's"))


def test_old_replies_go_and_new_ones_stay(deployment: Path, capsys: pytest.CaptureFixture[str]):
    cache = RequestCache(deployment / "replies")
    for n in range(100):
        cache.put(f"{n:064x}", "x" * 10_000)
    for n in range(90):
        os.utime(cache._path(f"{n:064x}"), (0, 0))
    count, size = freed(runs(capsys, "--prune"), "would_free")["replies"]
    assert count == 90 and len(cache) == 100
    count, size = freed(runs(capsys, "--prune", "--yes"))["replies"]
    assert count == 90 and size > 500_000
    assert len(cache) == 10 and cache.get(f"{95:064x}") == "x" * 10_000


def test_old_logs_go_with_their_empty_folders(deployment: Path, capsys: pytest.CaptureFixture[str]):
    logs = deployment / "logs"
    for name in ("dag_id=a/run_id=old/attempt=1.log", "dag_id=a/run_id=new/attempt=1.log"):
        (logs / name).parent.mkdir(parents=True)
        (logs / name).write_text("line\n" * 100)
    age(logs / "dag_id=a" / "run_id=old")
    assert freed(runs(capsys, "--prune", "--yes", "--logs", str(logs), "--keep-logs-days", "20"))["logs"] == (1, 500)
    assert [p.name for p in (logs / "dag_id=a").iterdir()] == ["run_id=new"]
    assert freed(runs(capsys, "--prune", "--yes"))["logs"] == (0, 0), "logs are left alone when no folder is named"


@pytest.mark.parametrize("words", [["--yes"], ["--prune", "--keep-days", "-1"]])
def test_a_wrong_use_is_refused(deployment: Path, words: list[str]):
    assert main(["runs", *words]) == 78
    assert (deployment / "runs" / "old").exists()


def test_which_runs_may_go():
    def run(name: str, idle_days: float, is_working: bool = False) -> OpenRun:
        return OpenRun(Path("/runs") / name, name, "dataset", "v", idle_days, 1, is_working)

    every = [run("a", 20), run("b", 20, is_working=True), run("c", 1), run("d", 20)]
    assert [r.run_id for r in unneeded_runs(every, Retention(14, 1, 1, active=("d",)))] == ["a"]


@pytest.mark.parametrize("kind", ["auto", "lease"])
def test_whether_a_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setenv("MEGAPAIRS_LOCKS", kind)
    assert not is_held(tmp_path / "lock")
    with exclusive(tmp_path / "lock", 0, "busy"):
        assert is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "lock")
