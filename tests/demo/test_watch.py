"""Following a run: a line for each task that ends, the failing task's own last lines, the run that training starts."""

from pathlib import Path
from typing import Any

import pytest

from tasks.demo.setup import DemoFailed
from tasks.demo.watch import DATASET_DAG, Clock, follow_run, wait_for_training
from tasks.names import slug
from tests.demo.fake_airflow import FakeAirflow, ended_task


def test_a_line_for_each_stage_that_ends_and_none_for_plumbing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    airflow: Any = FakeAirflow(
        tmp_path, [ended_task("open_run"), ended_task("embed", map_index=0), ended_task("judge")], "success", []
    )
    ended = follow_run(airflow, Clock(), DATASET_DAG, "run 1")
    assert [(t.task_id, t.label, t.report["read"]) for t in ended] == [
        ("open_run", "", 7),
        ("embed", "semantic", 7),
        ("judge", "", 7),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "embed semantic" in lines[0] and "read 7" in lines[0]


def test_a_failed_run_holds_the_failing_tasks_own_last_lines(tmp_path: Path):
    airflow: Any = FakeAirflow(tmp_path, [ended_task("ingest", "failed")], "failed", [])
    with pytest.raises(DemoFailed, match=r"task ingest failed.*\n  \| reading\n  \| DataError: broken$"):
        follow_run(airflow, Clock(), DATASET_DAG, "run 1")


def test_the_evaluation_is_copied_before_its_worktree_goes(tmp_path: Path):
    report = tmp_path / slug("run 1") / "reports" / "evaluation.json"
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    airflow: Any = FakeAirflow(tmp_path, [ended_task("evaluate")], "success", [])
    follow_run(airflow, Clock(), DATASET_DAG, "run 1", tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_text() == "{}"


def test_the_second_version_starts_one_training(tmp_path: Path):
    airflow: Any = FakeAirflow(tmp_path, [], "success", ["asset 1"])
    assert wait_for_training(airflow) == "asset 1"
    airflow.run_ids = ["asset 1", "asset 2"]
    with pytest.raises(DemoFailed, match="2 runs, expected the one"):
        wait_for_training(airflow)
    airflow.run_ids = []
    with pytest.raises(DemoFailed, match="no run within 0 s"):
        wait_for_training(airflow, timeout_s=0.0)
