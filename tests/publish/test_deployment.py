"""Laying a deployment out: what is missing is made, the rest stays."""

import json
import stat
from pathlib import Path

import pytest

from tasks.__main__ import main
from tasks.errors import ConfigError
from tasks.publish import deployment
from tasks.publish.deployment import bucket_name, configure_deployment, dvc_config, pools, write_password


def test_the_bucket_of_a_remote():
    assert bucket_name("s3://megapairs/versions") == "megapairs"
    assert bucket_name("/srv/remote") is None


def test_downloads_from_the_remote_are_verified():
    lines = dvc_config("s3://b/p", {"endpointurl": "http://127.0.0.1:9000"}).splitlines()
    assert "    verify = true" in lines and "    endpointurl = http://127.0.0.1:9000" in lines


def test_the_password_is_readable_by_its_owner_alone(tmp_path: Path):
    path = tmp_path / "airflow" / "passwords.json"
    write_password(path, "admin", "secret")
    assert json.loads(path.read_text()) == {"admin": "secret"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_relative_remote_and_an_existing_deployment_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="a relative folder means another folder in every clone"):
        configure_deployment(tmp_path / "origin.git", tmp_path / "dataset", "remote", tmp_path / "cache")
    (tmp_path / "dataset").mkdir()
    with pytest.raises(ConfigError, match="exists; remove it first"):
        configure_deployment(tmp_path / "origin.git", tmp_path / "dataset", "/remote", tmp_path / "cache")


def test_the_command_makes_what_is_missing_once(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(deployment, "CHECKOUT", project)
    for name in deployment.REQUIRED:
        monkeypatch.delenv(name, raising=False)
    assert main(["deploy"]) == 78
    assert "environment lacks ['AIRFLOW_PASSWORD', 'DVC_REMOTE'" in capsys.readouterr().err
    monkeypatch.setenv("AIRFLOW_PASSWORD", "secret")
    monkeypatch.setenv("DVC_REMOTE", str(tmp_path / "remote"))
    monkeypatch.setenv("MEGAPAIRS_DATASET", str(tmp_path / "dataset"))
    monkeypatch.setenv("AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", str(tmp_path / "passwords.json"))
    assert main(["deploy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"is_new": True}
    assert (tmp_path / "origin.git" / "HEAD").read_text() == "ref: refs/heads/dataset\n"
    assert str(tmp_path / "remote") in (tmp_path / "dataset" / ".dvc" / "config").read_text()
    assert main(["deploy"]) == 0
    assert capsys.readouterr().out == "deployment was there already\n"


def test_the_pools_have_the_slots_that_the_environment_names():
    made = pools({"GPU_SLOTS": "4", "CPU_SLOTS": ""})
    assert {name: pool["slots"] for name, pool in made.items()} == {"fetch": 2, "cpu": 2, "gpu": 4}
    assert all(pool["description"] for pool in made.values())  # `airflow pools import` wants one


@pytest.mark.parametrize("slots", ["0", "-1", "two", "1.5"])
def test_slots_that_are_no_count_are_refused(slots: str):
    with pytest.raises(ConfigError, match=r"FETCH_SLOTS=.*: expected a count of slots, 1 or more"):
        pools({"FETCH_SLOTS": slots})
