"""The demo's story, with a fake Airflow: the order of its acts, and what is stopped when one fails."""

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.__main__ import main
from tasks.demo import demo
from tests.demo.fake_airflow import FakeAirflow, ended_task


@pytest.fixture
def airflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeAirflow:
    """Everything that takes time is a fake; the benchmark is a process that ends at once."""
    fake = FakeAirflow(tmp_path, [ended_task("ingest"), ended_task("version")], "success", ["asset 1"])
    monkeypatch.setattr(demo, "LocalAirflow", lambda root: fake)
    monkeypatch.setattr(demo, "make_deployment", lambda root: None)
    monkeypatch.setattr(demo, "draw_world", lambda root, seed, images, offset: {"images": images})
    monkeypatch.setattr(demo, "start_benchmark", lambda root, size: subprocess.Popen(["true"]))
    return fake


def test_two_versions_then_the_training_that_the_second_one_starts(
    airflow: FakeAirflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["demo", "--root", str(tmp_path / "demo"), "--profile", "test", "--json"]) == 0
    today = datetime.datetime.now(datetime.UTC).date()
    assert airflow.actions == [
        "start",
        "healthy",
        "pools",
        "unpause dataset_refresh",
        f"trigger dataset_refresh {today - datetime.timedelta(days=7)}",
        "unpause bge_vl_finetune",
        f"trigger dataset_refresh {today}",
        "stop",
    ]
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["seconds"]["ingest"] == 4.5 and summary["incremental"]["ingest"]["new"] == 0
    assert json.loads((tmp_path / "demo" / "summary.json").read_text()) == summary
    assert "40 more files in the same folder" in printed.err and "started by the second version" in printed.err


def test_a_week_without_a_version_fails_and_stops_airflow(
    airflow: FakeAirflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    airflow.tasks[-1]["state"] = "skipped"
    assert main(["demo", "--root", str(tmp_path / "demo"), "--profile", "test"]) == 1
    assert "no version was published, so there is nothing to train on" in capsys.readouterr().err
    assert airflow.actions[-1] == "stop"


def test_keep_leaves_airflow_running(airflow: FakeAirflow, tmp_path: Path):
    summary: dict[str, Any] = demo.run_demo(tmp_path / "demo", "test", 7, keep=True)
    assert summary["versions"] == [] and "stop" not in airflow.actions


def test_a_benchmark_that_cannot_be_drawn_fails_the_demo(
    airflow: FakeAirflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def start(root: Path, size: object) -> subprocess.Popen[bytes]:
        (root / "benchmark.log").write_text("no room")
        return subprocess.Popen(["false"])

    monkeypatch.setattr(demo, "start_benchmark", start)
    with pytest.raises(demo.DemoFailed, match="could not be drawn:\nno room"):
        demo.run_demo(tmp_path / "demo", "test", 7, keep=False)
    assert airflow.actions[-1] == "stop"


def test_the_ui_needs_a_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["demo", "--ui", "--root", str(tmp_path)]) == 1
    assert "no Airflow to show yet; run `make demo` first" in capsys.readouterr().err


def test_an_interrupt_inside_a_callback_of_a_fork_is_not_lost():
    """Python drops what a signal raises in logging's callback at a fork; it comes a moment later instead."""
    code = (
        "import logging, signal, time, types\n"
        "from tasks.demo.demo import interrupted_by_signals\n"
        "frame = types.SimpleNamespace(f_code=types.SimpleNamespace(co_filename=logging.__file__))\n"
        "try:\n"
        "    with interrupted_by_signals():\n"
        "        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, frame)\n"
        "        time.sleep(30)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "interrupted\n"
