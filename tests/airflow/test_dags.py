"""The DAG files: they parse, they are their own manual, and they are wired as DESIGN.md says."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.markup import table_widths

NAMES = ("dataset_refresh", "bge_vl_finetune")
POOLS = {
    "dataset_refresh": {
        **dict.fromkeys(("recaption", "embed", "caption", "judge"), "gpu"),
        **dict.fromkeys(("ingest", "mine_part", "mine", "select"), "cpu"),
        "ingest_fetch": "fetch",
    },
    "bge_vl_finetune": {"train": "gpu", "evaluate_part": "gpu", "evaluate": "gpu"},
}


def upstream(dag: Any, task_id: str) -> set[str]:
    return set(dag.get_task(task_id).upstream_task_ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_dag_runs_once_at_a_time_and_catches_nothing_up(name: str, load_dag: Callable[[str], Any]):
    dag = load_dag(name)
    assert dag.dag_id == name
    assert dag.max_active_runs == 1
    assert dag.catchup is False


@pytest.mark.parametrize("name", NAMES)
def test_the_manual_names_every_parameter(name: str, load_dag: Callable[[str], Any]):
    dag = load_dag(name)
    for param in dag.params:
        assert f"`{param}`" in dag.doc_md, f"{param} is missing in the docstring of {name}"
    for word in ("Idempotence", "Resuming"):
        assert word in dag.doc_md


@pytest.mark.parametrize("name", NAMES)
def test_the_manual_is_shown_with_whole_tables_and_names_every_task(name: str, load_dag: Callable[[str], Any]):
    dag = load_dag(name)
    widths = table_widths(dag.doc_md)
    assert len(widths) == 2 and all(set(rows) == {2} for rows in widths), "steps and parameters, two columns each"
    helpers = {"mine_parts"}
    assert [t for t in dag.task_ids if t not in helpers and f"`{t}`" not in dag.doc_md] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_task_retries_and_writes_a_mail_at_the_last_failure(
    name: str, load_dag: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEGAPAIRS_MAIL_TO", "a@example.org")
    for task in load_dag(name).tasks:
        arguments = task.partial_kwargs if task.is_mapped else vars(task)
        assert arguments["retries"] == 2, task.task_id
        assert arguments["retry_policy"].retries == 2, task.task_id
        callbacks = task.on_failure_callback if not task.is_mapped else task.partial_kwargs["on_failure_callback"]
        assert [c.to for c in callbacks] == [["a@example.org"]], task.task_id


@pytest.mark.parametrize("name", NAMES)
def test_heavy_stages_take_a_slot_of_their_pool_and_gpu_stages_go_to_its_queue(
    name: str, load_dag: Callable[[str], Any]
):
    for task in load_dag(name).tasks:
        assert task.pool == POOLS[name].get(task.task_id, "default_pool"), task.task_id
        assert (task.queue == "gpu") == (task.pool == "gpu"), task.task_id


@pytest.mark.parametrize("name", NAMES)
def test_a_deployment_says_which_stages_take_the_gpu(
    name: str, load_dag: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEGAPAIRS_GPU_STAGES", "mine, train")
    on_gpu = {task.task_id for task in load_dag(name).tasks if task.pool == "gpu"}
    assert on_gpu == {"dataset_refresh": {"mine", "mine_part"}, "bge_vl_finetune": {"train"}}[name]
    monkeypatch.setenv("MEGAPAIRS_GPU_STAGES", "mine,publish")
    with pytest.raises(ValueError, match=r"MEGAPAIRS_GPU_STAGES: \['publish'\] cannot take the GPU"):
        load_dag(name)


def test_every_pool_is_made_by_the_demo_and_by_deploy():
    from megapairs.wiring import CPU_POOLS, POOLS

    from tasks.demo import local_airflow
    from tasks.publish import deployment

    assert set(local_airflow.POOLS) == set(deployment.POOLS) == set(POOLS) == {*CPU_POOLS.values(), "gpu"}


def test_a_gate_stands_between_each_table_and_what_uses_it(load_dag: Callable[[str], Any]):
    dag = load_dag("dataset_refresh")
    order = [
        "open_run",
        "ingest_list",
        "ingest_fetch",
        "ingest",
        "validate_images",
        "recaption",
        "embed",
        "mine_part",
        "mine",
        "select",
    ]
    order += ["validate_pairs", "caption", "judge", "validate_triplets", "version"]
    for before, after in zip(order, [*order[1:], "close_run"], strict=True):
        assert before in upstream(dag, after), f"{before} must come right before {after}"
    mapped = {t.task_id for t in dag.tasks if t.is_mapped}
    assert mapped == {"ingest_fetch", "recaption", "embed", "mine_part", "mine"}


def test_a_part_is_judged_once_it_is_captioned(load_dag: Callable[[str], Any]):
    dag = load_dag("dataset_refresh")
    groups = {name: dag.get_task(name).get_closest_mapped_task_group() for name in ("caption", "judge")}
    assert groups["caption"] is groups["judge"] is not None
    assert "caption" in upstream(dag, "judge")


def test_the_version_starts_the_training(load_dag: Callable[[str], Any]):
    from megapairs.wiring import TRIPLETS

    assert load_dag("dataset_refresh").get_task("version").outlets == [TRIPLETS]
    dag = load_dag("bge_vl_finetune")
    assert dag.schedule == [TRIPLETS]
    order = ("open_run", "train", "evaluate_part", "evaluate", "promote", "close_run")
    assert [t for t in order if t in dag.task_ids] == [t.task_id for t in dag.topological_sort()]


def test_the_schedule_is_weekly_and_can_be_changed_or_taken_away(
    load_dag: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MEGAPAIRS_SCHEDULE", raising=False)
    assert load_dag("dataset_refresh").schedule == "@weekly"
    monkeypatch.setenv("MEGAPAIRS_SCHEDULE", "*/5 * * * *")
    assert load_dag("dataset_refresh").schedule == "*/5 * * * *"
    monkeypatch.setenv("MEGAPAIRS_SCHEDULE", "")
    assert load_dag("dataset_refresh").schedule is None
