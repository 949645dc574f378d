"""The pause before a retry: it doubles, and starts anew when a person clears the task."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest


def pauses_s(retries: int, cleared: int) -> list[float]:
    """The pauses of a task that was cleared this often after its last try, as Airflow counts: a clear sets max_tries to
    the tries made so far plus the retries, and try_number goes on.
    """
    from megapairs.defaults import DoublingPause

    policy = DoublingPause(retries, timedelta(seconds=60))
    tries_before = cleared * (retries + 1)
    max_tries = tries_before + retries
    decisions = [policy.evaluate(OSError(), tries_before + n, max_tries) for n in range(1, retries + 1)]
    return [d.retry_delay.total_seconds() for d in decisions if d.retry_delay]


@pytest.mark.parametrize("cleared", [0, 1, 2, 5])
def test_a_cleared_task_waits_as_a_new_one(cleared: int):
    assert pauses_s(3, cleared) == [60, 120, 240]


def test_cleared_in_the_middle_of_its_tries():
    """Cleared after its second try of four: max_tries 2 + 3, the next try is the third."""
    from megapairs.defaults import DoublingPause

    delay = DoublingPause(3, timedelta(seconds=60)).evaluate(OSError(), 3, 5).retry_delay
    assert delay == timedelta(seconds=60)


def test_no_pause_exceeds_an_hour_however_many_retries():
    assert pauses_s(2000, 0)[-1] == 3600


@pytest.mark.parametrize("name", ["dataset_refresh", "bge_vl_finetune"])
def test_the_policy_survives_the_dags_serialized_form(name: str, load_dag: Callable[[str], Any]):
    from airflow.serialization.serialized_objects import DagSerialization

    restored = DagSerialization.from_dict(DagSerialization.to_dict(load_dag(name)))
    for task in restored.tasks:
        value = task.partial_kwargs if task.is_mapped else vars(task)
        assert value.get("has_retry_policy", getattr(task, "has_retry_policy", False)), task.task_id
        assert task.retry_delay == timedelta(seconds=60), "a killed task asks no policy: it waits for the first pause"
