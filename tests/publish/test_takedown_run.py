"""Which open runs a takedown waits for: those in which somebody works, not those that were cut off."""

import json
import os
from pathlib import Path

import pytest

from tasks import locks
from tasks.errors import ConfigError, TransientError
from tasks.publish import takedown_run
from tasks.publish.open_run import MARKER, Deployment
from tasks.publish.retention import files_below
from tasks.publish.takedown_run import RECENT_DAYS, driving, require_no_run
from tasks.store.atomic import write_bytes


def open_run_at(root: Path, run_id: str, kind: str = "dataset") -> Path:
    """A worktree as `open_run` leaves it, in which something has changed just now."""
    worktree = root / "runs" / run_id.replace(" ", "-")
    write_bytes(worktree / MARKER, json.dumps({"run_id": run_id, "kind": kind, "batch": "2026.11.30"}).encode())
    return worktree


def deployment_at(root: Path) -> Deployment:
    return Deployment(root / "dataset", root / "runs")


@pytest.mark.parametrize("kind", ["auto", "lease"])
@pytest.mark.parametrize("run_id", ["renew__2026-11-29", "takedown__2026-11-29", "purge 0a 1", "mine"])
def test_a_takedown_waits_for_a_run_by_hand_as_long_as_its_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, run_id: str
):
    monkeypatch.setenv("MEGAPAIRS_LOCKS", kind)
    worktree = open_run_at(tmp_path, run_id)
    with driving(worktree, run_id), pytest.raises(ConfigError, match=f"takedown: run {run_id} is under way"):
        require_no_run(deployment_at(tmp_path))
    require_no_run(deployment_at(tmp_path))  # cut off a moment ago
    require_no_run(deployment_at(tmp_path), "purge")


def test_a_second_process_does_not_drive_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(takedown_run, "DRIVER_WAIT_S", 0.0)
    worktree = open_run_at(tmp_path, "renew__1")
    with driving(worktree, "renew__1"), pytest.raises(TransientError, match="renew__1: another process drives this"):
        driving(worktree, "renew__1").__enter__()


def test_a_run_whose_process_was_killed_with_its_lease_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A killed process gives no lease back: it is taken over once it has not been renewed for EXPIRY_S."""
    monkeypatch.setenv("MEGAPAIRS_LOCKS", "lease")
    monkeypatch.setattr(locks, "EXPIRY_S", 0.3)
    worktree = open_run_at(tmp_path, "renew__1")
    lease = locks.lease_file(worktree / ".run" / "locks" / "driver", 1)
    write_bytes(lease, json.dumps({**locks.owner(), "name": "gone", "is_released": False}).encode())
    with driving(worktree, "renew__1"):
        assert locks.newest_token(lease.parent / "driver") == 2


def test_another_renewal_is_told_to_go_on_with_the_one_that_was_cut_off(tmp_path: Path):
    open_run_at(tmp_path, "renew__1")
    with pytest.raises(ConfigError, match=r"renew: run renew__1 was cut off.*--run-id renew__1"):
        require_no_run(deployment_at(tmp_path), "renew")


def test_a_week_is_under_way_between_its_tasks_too(tmp_path: Path):
    open_run_at(tmp_path, "train", "model")
    worktree = open_run_at(tmp_path, "scheduled__2026-11-29")
    with pytest.raises(ConfigError, match="takedown: run scheduled__2026-11-29 is under way"):
        require_no_run(deployment_at(tmp_path))
    for path in files_below(worktree):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 1.1 * RECENT_DAYS * 86_400))
    require_no_run(deployment_at(tmp_path))
