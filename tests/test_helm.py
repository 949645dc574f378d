"""deploy/helm/values.yaml, checked without a cluster: variables, settings and folders as in docker-compose.yaml."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.demo.compose import interpolate

# Top keys of the official chart's values (apache/airflow, chart/values.schema.json) that are used here.
CHART_KEYS = {
    *("executor", "airflowVersion", "defaultAirflowRepository", "defaultAirflowTag", "images", "data", "config", "env"),
    *("fernetKeySecretName", "apiSecretKeySecretName", "jwtSecretName", "postgresql", "redis", "statsd", "secret"),
    *("createUserJob", "enableServiceLinks", "volumes", "volumeMounts", "workers", "securityContexts"),
    *("apiServer", "scheduler", "dagProcessor", "triggerer"),
}
# What the chart itself sets from its secrets and its own services, or what only Celery and containers of one host need.
BY_THE_CHART = {
    *("AIRFLOW__CORE__EXECUTOR", "AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"),
    *("AIRFLOW__CELERY__BROKER_URL", "AIRFLOW__CELERY__RESULT_BACKEND", "AIRFLOW__CORE__EXECUTION_API_SERVER_URL"),
    *("AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API__HOST", "AIRFLOW__API__PORT"),
}
# A queued pod may wait for its node; lost messages of Redis do not exist there.
CELERYS_OWN = {
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL",
    "AIRFLOW__SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES",
    "AIRFLOW__CELERY__TASK_PUBLISH_MAX_RETRIES",
    "AIRFLOW__CELERY__EXTRA_CELERY_CONFIG",
}


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return yaml.safe_load(Path("deploy/helm/values.yaml").read_text())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(Path("docker-compose.yaml").read_text())


def variables(values: dict[str, Any]) -> dict[str, str]:
    """Every variable that the chart will set: `env`, `secret`, and `config` in Airflow's spelling."""
    found = {entry["name"]: entry["value"] for entry in values["env"]}
    found |= {entry["envName"]: "(a secret)" for entry in values["secret"]}
    for section, settings in values["config"].items():
        found |= {f"AIRFLOW__{section}__{name}".upper(): str(value) for name, value in settings.items()}
    return found


def test_every_variable_of_the_compose_file_is_set(values: dict[str, Any], compose: dict[str, Any]):
    wanted = set(compose["services"]["scheduler"]["environment"])
    missing = wanted - set(variables(values)) - BY_THE_CHART - CELERYS_OWN
    assert not missing, f"deploy/helm/values.yaml lacks {sorted(missing)}"


def test_what_makes_airflow_outlast_an_outage_is_the_same(values: dict[str, Any], compose: dict[str, Any]):
    here = variables(values)
    for name, value in compose["services"]["scheduler"]["environment"].items():
        if name.startswith(("AIRFLOW__WORKERS__", "AIRFLOW__API_AUTH__JWT_LEEWAY", "AIRFLOW__EXECUTION_API__")):
            assert here[name] == interpolate(str(value), {}), name


def test_the_file_has_the_form_of_the_charts_values(values: dict[str, Any]):
    assert set(values) == CHART_KEYS
    for entry in values["env"]:
        assert set(entry) == {"name", "value"} and isinstance(entry["value"], str), entry
    for entry in values["secret"]:
        assert set(entry) == {"envName", "secretName", "secretKey"}, entry
    assert {m["name"] for m in values["volumeMounts"]} == {v["name"] for v in values["volumes"]}


def test_folders_lie_on_the_shared_volume_and_sqlite_does_not(values: dict[str, Any]):
    mounts = {m["mountPath"]: m["name"] for m in values["volumeMounts"]}
    here = variables(values)
    for name in ("MEGAPAIRS_DATASET", "MEGAPAIRS_RUNS", "HF_HOME", "AIRFLOW__LOGGING__BASE_LOG_FOLDER"):
        assert mounts["/" + here[name].split("/")[1]] == "data", name
    assert mounts[str(Path(here["DVC_SITE_CACHE_DIR"]).parent)] == "host-cache"
    assert str(Path(here["MEGAPAIRS_GPU_POD"]).parent) in mounts


def test_the_api_server_alone_gets_the_passwords_in_a_file_that_it_can_write(values: dict[str, Any]):
    folder = Path(variables(values)["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]).parent
    server = values["apiServer"]
    mounts = {m["mountPath"]: m for m in server["extraVolumeMounts"]}
    assert not mounts[str(folder)].get("readOnly") and str(folder) not in {
        m["mountPath"] for m in values["volumeMounts"]
    }
    assert "emptyDir" in next(v for v in server["extraVolumes"] if v["name"] == mounts[str(folder)]["name"])
    assert server["extraInitContainers"][0]["command"][-1] == f"{folder}/passwords.json"
    assert not any("secret" in volume for volume in values["volumes"])


@pytest.mark.parametrize(
    ("given", "runs"),
    [
        (["bash", "-c", "echo $0 $1", "exec airflow", "scheduler"], "exec airflow scheduler"),  # the chart's services
        (["python", "-c", "print('a worker pod')"], "a worker pod"),  # the Kubernetes executor's pods
        (["airflow", "db", "check-migrations"], "airflow: db check-migrations"),  # the chart's init containers
        (["celery", "worker", "-q", "default"], "airflow: celery worker -q default"),  # docker-compose.yaml
    ],
)
def test_the_image_runs_programs_and_commands_of_airflow(tmp_path: Path, given: list[str], runs: str):
    (tmp_path / "airflow").write_text('#!/bin/sh\necho "airflow: $*"\n')
    (tmp_path / "airflow").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "deploy/entrypoint.sh", *given], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == runs
    dockerfile = Path("Dockerfile").read_text()
    assert "deploy/entrypoint.sh /entrypoint" in dockerfile and 'ENTRYPOINT ["tini", "--", "/entrypoint"]' in dockerfile


def test_every_secret_is_one_that_the_header_makes(values: dict[str, Any]):
    header = Path("deploy/helm/values.yaml").read_text().split("executor:")[0]
    for entry in values["secret"]:
        assert f"--from-literal={entry['secretKey']}=" in header, entry
    for key in ("connection", "fernet-key", "api-secret-key", "jwt-secret", "passwords.json"):  # the chart's own names
        assert f"--from-literal={key}=" in header
    assert "latest" not in {values["defaultAirflowTag"], values["images"]["airflow"]["tag"]}


def test_versions_are_those_of_the_lock(values: dict[str, Any]):
    assert f"apache-airflow=={values['airflowVersion']}\n" in Path("requirements.lock").read_text()
    assert "apache-airflow-providers-cncf-kubernetes==" in Path("requirements.lock").read_text()


def test_airflow_knows_every_setting(values: dict[str, Any]):
    import importlib.util

    spec = importlib.util.find_spec("airflow")
    assert spec is not None and spec.submodule_search_locations
    known = yaml.safe_load((Path(spec.submodule_search_locations[0]) / "config_templates" / "config.yml").read_text())
    own = {"simple_auth_manager_users", "simple_auth_manager_passwords_file"}
    for section, settings in values["config"].items():
        for name in set(settings) - own:
            assert name in known[section]["options"], f"[{section}] {name}"
