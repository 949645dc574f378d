"""Airflow's settings against outages: they add up, and the compose file and the demo have the same."""

import json
import random
from pathlib import Path

import pytest
import yaml

from tasks.demo.airflow_settings import FIND_LOST_MESSAGES, OUTLAST_OUTAGES
from tasks.demo.local_airflow import airflow_environment

OUTAGE_S = 300
SETTINGS = OUTLAST_OUTAGES | FIND_LOST_MESSAGES


def value(section: str, option: str) -> float:
    return float(SETTINGS[f"AIRFLOW__{section}__{option}"])


@pytest.mark.parametrize("seed", range(50))
def test_a_calls_tries_outlast_the_outage(seed: int):
    """Pauses as of tenacity's wait_random_exponential: drawn between the least and the doubled, at most the longest."""
    draw = random.Random(seed)
    least, longest = value("WORKERS", "EXECUTION_API_RETRY_WAIT_MIN"), value("WORKERS", "EXECUTION_API_RETRY_WAIT_MAX")
    pauses = [
        draw.uniform(least, min(longest, 2.0**n)) for n in range(int(value("WORKERS", "EXECUTION_API_RETRIES")) - 1)
    ]
    assert sum(pauses) > OUTAGE_S


def test_nobody_gives_the_task_up_meanwhile():
    longest_pause = value("WORKERS", "EXECUTION_API_RETRY_WAIT_MAX")
    one_call = value("WORKERS", "EXECUTION_API_TIMEOUT")
    assert value("SCHEDULER", "TASK_INSTANCE_HEARTBEAT_TIMEOUT") > OUTAGE_S + longest_pause + one_call
    renewed_before_s = 0.2 * value("EXECUTION_API", "JWT_EXPIRATION_TIME")  # the last fifth of a token's life
    assert renewed_before_s > OUTAGE_S + longest_pause + one_call


def test_a_lost_message_is_found_within_a_minute_and_its_token_lives_as_long():
    longest_s = value("SCHEDULER", "TASK_QUEUED_TIMEOUT") + value("SCHEDULER", "TASK_QUEUED_TIMEOUT_CHECK_INTERVAL")
    assert longest_s < 60
    assert value("SCHEDULER", "TASK_QUEUED_TIMEOUT") + value("API_AUTH", "JWT_LEEWAY") > longest_s
    waits_s = longest_s * value("SCHEDULER", "NUM_STUCK_IN_QUEUED_RETRIES")
    assert waits_s > 12 * 3600, "a task that waits for a free worker is never failed for it"


def test_a_broker_that_refuses_is_asked_until_the_send_times_out_and_the_send_is_repeated():
    policy = json.loads(SETTINGS["AIRFLOW__CELERY__EXTRA_CELERY_CONFIG"])["task_publish_retry_policy"]
    pauses = [
        min(policy["interval_max"], policy["interval_start"] + n * policy["interval_step"])
        for n in range(policy["max_retries"])
    ]
    operation_timeout_s = 1.0  # Airflow's own
    assert sum(pauses) > 2 * operation_timeout_s
    assert value("CELERY", "TASK_PUBLISH_MAX_RETRIES") * operation_timeout_s > OUTAGE_S


def test_compose_and_the_local_airflow_use_them(tmp_path: Path):
    compose = yaml.safe_load(Path("docker-compose.yaml").read_text())
    for name in ("api-server", "scheduler", "dag-processor", "triggerer", "worker", "gpu-worker"):
        assert compose["services"][name]["environment"].items() >= SETTINGS.items(), name
    assert airflow_environment(tmp_path, 1).items() >= OUTLAST_OUTAGES.items()
