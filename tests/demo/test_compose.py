"""Reading docker-compose.yaml: variables filled in as Docker Compose does, and the image's own."""

from pathlib import Path

import pytest

from tasks.demo.compose import dockerfile_environment, interpolate, read_compose, read_env_file
from tasks.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "a"),
        ("x-${A}-${B:-b}", "x-a-b"),
        ("${EMPTY:-filled}", "filled"),
        ("${EMPTY-kept}", ""),
        ("${GONE-default}", "default"),
        ("${GONE}", ""),
        ("$$HOME", "$HOME"),
        ("${A:?must}", "a"),
        ("redis://:${A:?must}@redis:6379/0", "redis://:a@redis:6379/0"),
    ],
)
def test_variables_are_filled_in(text: str, expected: str):
    assert interpolate(text, {"A": "a", "EMPTY": ""}) == expected


@pytest.mark.parametrize(
    "text", ["${GONE:?see .env.example}", "${EMPTY:?see .env.example}", "${GONE?see .env.example}"]
)
def test_a_variable_that_must_be_set_is_asked_for(text: str):
    with pytest.raises(ConfigError, match=r"is not set; expected a value; see \.env\.example"):
        interpolate(text, {"EMPTY": ""})


def test_the_file_of_the_deployment(project: Path):
    values = {**read_env_file(project / ".env.example"), "GPU_WORKER_SLOTS": "3"}
    values |= {name: "drawn" for name, value in values.items() if value == ""}
    services = read_compose(project / "docker-compose.yaml", values)
    assert services["gpu-worker"].command == ("celery", "worker", "-q", "gpu", "-c", "3")
    assert services["gpu-worker"].profiles == ("gpu",) and services["worker"].profiles == ()
    assert services["init"].environment["AIRFLOW__CELERY__BROKER_URL"] == "redis://:drawn@redis:6379/0"
    assert services["redis"].healthcheck == ("redis-cli", "ping")
    assert dockerfile_environment(project / "Dockerfile")["AIRFLOW_HOME"] == "/opt/airflow"
