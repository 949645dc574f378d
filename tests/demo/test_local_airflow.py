"""The embedded Airflow."""

from pathlib import Path

import pytest

from tasks.demo.local_airflow import airflow_environment


def test_the_embedded_airflow_keeps_to_its_folder_and_the_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("MEGAPAIRS_PROFILE", "production")
    environment = airflow_environment(tmp_path, 8123)
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert (
        environment["AIRFLOW_HOME"].startswith(str(tmp_path))
        and str(tmp_path) in environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    )
    assert "MEGAPAIRS_PROFILE" not in environment


def test_what_a_person_sets_for_mails_and_the_hub_reaches_the_embedded_airflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = {
        "MEGAPAIRS_MAIL_TO": "data@example.org",
        "MEGAPAIRS_MAIL_FROM": "factory@example.org",
        "AIRFLOW_CONN_SMTP_DEFAULT": "smtp://localhost:1025",
        "AIRFLOW__SMTP__SMTP_HOST": "localhost",
        "HF_HUB_OFFLINE": "0",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert airflow_environment(tmp_path, 8123).items() >= given.items()
