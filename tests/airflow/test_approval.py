"""A person's approval before `version` and `promote`: who is asked what, and what an answer does."""

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowFailException
from markupsafe import escape

from tasks.config import overlay, read_raw, resolve

Fake = Callable[[str], Path]


def test_a_person_approves_first_where_the_deployment_says_so(
    load_dag: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MEGAPAIRS_APPROVAL", raising=False)
    assert "approve_version" not in load_dag("dataset_refresh").task_ids, "off unless it is asked for"
    monkeypatch.setenv("MEGAPAIRS_APPROVAL", "version, promote")
    dag = load_dag("dataset_refresh")
    assert dag.get_task("version").upstream_task_ids == {"approve_version"}
    assert dag.get_task("approve_version").upstream_task_ids == {"validate_triplets"}
    assert dag.get_task("approve_version").fail_on_reject
    assert load_dag("bge_vl_finetune").get_task("promote").upstream_task_ids == {"approve_promote"}
    monkeypatch.setenv("MEGAPAIRS_APPROVAL", "ingest")
    with pytest.raises(ValueError, match="expected version, promote or both"):
        load_dag("dataset_refresh")


def ask(load_dag: Callable[[str], Any], dag: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **conf: Any) -> Any:
    """Run the approval before the last stage of a DAG, in the run's worktree; what it asked, its mails and its task."""
    from airflow.providers.standard.operators import hitl
    from airflow.sdk.exceptions import TaskAwaitingInput
    from megapairs.mail_message import Mail

    asked: list[dict[str, Any]] = []
    mails: list[Any] = []
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **values: asked.append(values))
    monkeypatch.setattr(Mail, "notify", lambda mail, _: mails.append((mail.subject, mail.html_content)))
    for name, value in (("APPROVAL", "version,promote"), ("MAIL_TO", "a@example.org"), ("UI", "http://airflow.test/")):
        monkeypatch.setenv(f"MEGAPAIRS_{name}", value)
    (folder / ".run").mkdir(exist_ok=True)
    (folder / ".run" / "opened.json").write_text('{"batch": "2026.11.28"}')
    changes = {"open_run": {"date": "2026-11-28", "batch": "2026.11.28", **conf}}
    values = overlay(resolve(read_raw(Path("params.yaml")), "test"), changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    (approval,) = (task for task in load_dag(dag).tasks if task.task_id.startswith("approve_"))
    instance = SimpleNamespace(id="1", dag_id=dag, run_id="run 1", try_number=1)
    with contextlib.suppress(TaskAwaitingInput):
        assert approval.execute({"task_instance": instance, "ti": instance, "task": approval}) is None
        assert asked == []
    return asked, mails, approval


def test_a_question_says_what_came_out_and_a_mail_says_that_it_waits(
    load_dag: Callable[[str], Any], fake_tasks: Fake, monkeypatch: pytest.MonkeyPatch
):
    folder = fake_tasks("")
    (folder / "reports" / "validation").mkdir(parents=True)
    gate = {"table": "triplets", "is_valid": True, "figures": {"rows": 35.0}, "checks": [{"is_held": True}]}
    (folder / "reports" / "validation" / "triplets.json").write_text(json.dumps(gate))
    monkeypatch.setattr("tasks.publish.outcome.require_triplets", lambda *_: 35)
    (asked,), ((subject, page),), _ = ask(load_dag, "dataset_refresh", folder, monkeypatch)
    came_out = "35 new triplets; gate 'triplets' passed: 1 of 1 expectations hold."
    link = f"http://airflow.test/megapairs/gates/2026.11.28/triplets?run={folder.name}"
    assert came_out in asked["body"] and f"({link})" in asked["body"]
    assert subject == "[sample-world] a new version waits for your approval"
    assert escape(came_out) in page and escape(link) in page
    assert "http://airflow.test/dags/dataset_refresh/runs/run%201/tasks/approve_version/required_actions" in page

    scores = {name: {"composed": {"map_at_5": value}} for name, value in (("base", 0.1), ("finetuned", 0.25))}
    evaluation = {"metrics": scores, "intervals": {"finetuned": {"composed": {"map_at_5": [0.2, 0.3]}}}}
    (folder / "reports" / "evaluation.json").write_text(json.dumps(evaluation))
    (asked,), _, _ = ask(load_dag, "bge_vl_finetune", folder, monkeypatch)
    assert "map_at_5 of image and text, in percent: finetuned 25.0 (20.0 to 30.0), base 10.0." in asked["body"]


@pytest.mark.parametrize("dag", ["dataset_refresh", "bge_vl_finetune"])
def test_nobody_is_asked_about_a_dry_run(
    dag: str, load_dag: Callable[[str], Any], fake_tasks: Fake, monkeypatch: pytest.MonkeyPatch
):
    asked, mails, _ = ask(load_dag, dag, fake_tasks(""), monkeypatch, dry_run=True)
    assert asked == mails == []


def test_nobody_is_asked_about_an_empty_week(
    load_dag: Callable[[str], Any], fake_tasks: Fake, monkeypatch: pytest.MonkeyPatch
):
    """No triplet, nothing withdrawn or renewed: the stage `version` will say that there is nothing to do."""
    asked, mails, _ = ask(load_dag, "dataset_refresh", fake_tasks(""), monkeypatch)
    assert asked == mails == []


def test_a_rejection_fails_at_once_and_says_who_and_what_to_do(
    load_dag: Callable[[str], Any], fake_tasks: Fake, monkeypatch: pytest.MonkeyPatch
):
    """A retry would ask again what was answered."""
    from megapairs.alerts import Failure, body, next_steps, subject

    monkeypatch.setattr("tasks.publish.outcome.require_triplets", lambda *_: 1)
    _, _, task = ask(load_dag, "dataset_refresh", fake_tasks(""), monkeypatch)
    answer = {"params_input": {}, "responded_at": datetime.now(UTC), "responded_by_user": {"id": "1", "name": "ann"}}
    assert task.execute_complete({}, {**answer, "chosen_options": ["Approve"]})["chosen_options"] == ["Approve"]
    with pytest.raises(AirflowFailException, match="ann rejected a new version: nothing is published") as refused:
        task.execute_complete({}, {**answer, "chosen_options": ["Reject"]})
    failure = Failure("shop", "dataset_refresh", "run 1", "approve_version", str(refused.value))
    assert failure.is_final and "clear approve_version" in next_steps(failure)[1]
    assert subject(failure) == "[shop] ann rejected a new version"
    assert ">ann rejected a new version</h1>" in body(failure) and "No retry" not in body(failure)
