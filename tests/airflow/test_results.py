"""The last lines of a task's log, and what a run ends as whose tasks a person marked."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

Fake = Callable[[str], Path]


def report(**values: Any) -> str:
    return "echo '" + json.dumps({"stage": "x", "read": 0, "written": 0, "dropped": {}, "notes": [], **values}) + "'"


def context() -> dict[str, Any]:
    return {"run_id": "run 1", "params": {}, "dag_run": SimpleNamespace(conf={})}


def stage(**arguments: Any) -> Any:
    from megapairs.stage import Stage

    return Stage(task_id="a_stage", **arguments)


def test_a_versions_log_ends_with_what_was_published(fake_tasks: Fake, capsys: pytest.CaptureFixture[str]):
    figures = {"rows_triplets": 1173.0}
    fake_tasks(report(stage="version", read=1173, written=220, figures=figures, notes=["dataset/2026.11.28", "proof"]))
    stage(stage="version").execute(context())
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "published dataset/2026.11.28: 220 new triplets, 1,173 in all" in last


@pytest.mark.parametrize(
    ("is_promoted", "why", "line"),
    [
        (1.0, "promoted: composed map_at_5 0.2666 against 0.1163 of the base model, noise 0.0090",
         "promoted: 26.7 against 11.6 of the base model (composed map_at_5, noise 0.9)"),
        (0.0, "not promoted: composed map_at_5 0.1200 against 0.1163: the gain must be more than 0.005",
         "not promoted: 12.0 against 11.6 of the base model (composed map_at_5); composed map_at_5 0.1200"),
    ],
)  # fmt: skip
def test_promote_says_both_scores(is_promoted: float, why: str, line: str):
    from megapairs.results import promotion_line

    score = 0.2666 if is_promoted else 0.12
    figures = {"is_promoted": is_promoted, "base_map_at_5": 0.1163, "finetuned_map_at_5": score}
    assert promotion_line({"figures": figures, "notes": ["model/2026.11.28", why]}).startswith(line)


def test_a_gate_that_stops_a_run_logs_its_expectations(fake_tasks: Fake, capsys: pytest.CaptureFixture[str]):
    folder = fake_tasks("echo 'DataError: too many copies' >&2; exit 65")
    (folder / "reports" / "validation").mkdir(parents=True)
    checks = [
        {"column": "duplicate_share", "table_half": "figures", "observed": 0.61, "expected": "at most 0.25",
         "last": 0.07, "is_held": False},
        {"column": "phash", "table_half": "rows", "observed": "0 of 9 rows break it", "expected": "x", "is_held": True},
    ]  # fmt: skip
    content = {"table": "images", "is_valid": False, "checks": checks}
    (folder / "reports" / "validation" / "images.json").write_text(json.dumps(content))
    with pytest.raises(AirflowFailException):
        stage(stage="validate", item="images").execute(context())
    verdict, broken = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "gate 'images' stopped the run: 1 of 2 expectations hold" in verdict
    assert "BROKEN  duplicate_share: 0.61, expected at most 0.25, last version 0.07" in broken


def test_a_run_of_which_only_the_failed_tasks_were_cleared_ends_red_and_keeps_its_worktree(fake_tasks: Fake):
    """'Mark run failed' skips what has not begun; clearing what failed leaves that skipped, and close_run comes."""
    from megapairs.stage import CloseRun

    folder = fake_tasks(report(stage="open_run", notes=["closed"]))
    (folder / ".run").mkdir()
    (folder / ".run" / "opened.json").write_text('{"batch": "2026.11.28"}')
    with pytest.raises(AirflowFailException, match="Clear the first skipped task with its downstream tasks"):
        CloseRun().execute(context())
    fake_tasks("exit 99")
    with pytest.raises(AirflowSkipException):
        stage(stage="version").execute(context())
    fake_tasks(report(stage="open_run", notes=["closed"]))
    assert CloseRun().execute(context())["notes"] == ["closed"]


def test_a_task_leads_to_the_page_of_what_it_made(
    fake_tasks: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from megapairs.links import PageLink

    folder = fake_tasks(report(stage="version", read=9, written=9, notes=["dataset/2026.11.28"]))
    (folder / ".run").mkdir()
    (folder / ".run" / "opened.json").write_text('{"batch": "2026.11.28"}')
    monkeypatch.setenv("MEGAPAIRS_UI", "http://airflow.test/")
    key = SimpleNamespace(dag_id="dataset_refresh", run_id="run 1")

    def link(**arguments: Any) -> str:
        return PageLink().get_link(stage(**arguments), ti_key=key)

    base = "http://airflow.test/megapairs/"
    assert link(stage="validate", item="pairs") == f"{base}gates/2026.11.28/pairs?run={folder.name}"
    assert link(stage="version") == f"{base}versions/2026.11.28/"
    assert link(stage="promote") == f"{base}#models" and link(stage="embed", item="semantic") == ""
    stage(stage="version").execute(context())
    assert f"its page: {base}versions/2026.11.28/" in capsys.readouterr().out.strip().splitlines()[-1]


def test_every_gate_and_what_publishes_bears_the_button_to_its_page(load_dag: Callable[[str], Any]):
    from megapairs.links import PageLink

    tasks = [task for name in ("dataset_refresh", "bge_vl_finetune") for task in load_dag(name).tasks]
    bearing = {task.task_id for task in tasks if any(isinstance(n, PageLink) for n in task.operator_extra_links)}
    assert bearing == {"validate_images", "validate_pairs", "validate_triplets", "version", "evaluate", "promote"}


def test_a_further_dataset_has_a_pair_of_dags_and_folders_of_its_own(
    load_dag: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
):
    from megapairs.stage import deployment
    from megapairs.wiring import dataset_variables, run_folder, triplets_of

    monkeypatch.setenv("MEGAPAIRS_DATASETS", "shop=/data/shop")
    monkeypatch.setenv("MEGAPAIRS_SCHEDULE", "@daily")
    load_dag("dataset_refresh")
    import dataset_refresh_dag

    dag = dataset_refresh_dag.dataset_refresh("shop")
    assert dag.dag_id == "dataset_refresh__shop" and dag.is_paused_upon_creation is False
    assert dag.get_task("version").outlets == [triplets_of("shop")] != [triplets_of("")]
    assert str(run_folder("r", dag.dag_id).parent) == "/data/shop/runs" and dataset_variables("dataset_refresh") == {}
    assert str(deployment(dag.dag_id)) == "/data/shop/dataset"
    monkeypatch.setenv("MEGAPAIRS_DATASETS", "shop=relative")
    with pytest.raises(ValueError, match="expected name=/absolute/folder"):
        load_dag("dataset_refresh")
