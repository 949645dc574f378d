"""What a stage sees of its worker's environment: an allow-list, no secret of Airflow, credentials only where used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.__main__ import COMMANDS

AIRFLOWS = {
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://airflow:secret@postgres/airflow",
    "AIRFLOW__CORE__FERNET_KEY": "secret",
    "AIRFLOW__API_AUTH__JWT_SECRET": "secret",
    "AIRFLOW__CELERY__BROKER_URL_CMD": "cat /run/secret",
    "AIRFLOW_CONN_SMTP_DEFAULT": "smtp://user:secret@mail",
    "AIRFLOW_VAR_TOKEN": "secret",
    "_AIRFLOW_WWW_USER_PASSWORD": "secret",
    "AIRFLOW_HOME": "/opt/airflow",
    "POSTGRES_PASSWORD": "secret",
    "REDIS_PASSWORD": "secret",
    "MEGAPAIRS_SOME_PASSWORD": "secret",
    "HF_OTHER_TOKEN": "secret",
    "SOMETHING_OF_THE_SITE": "secret",
    "__AIRFLOW_SUPERVISOR_FD": "7",
    "PYTHONPATH": "/opt/plugins",
    "MEGAPAIRS_PROFILE": "production",
}
SEEN_BY_ALL = {
    "PATH": "/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "CUDA_VISIBLE_DEVICES": "1",
    "HF_HOME": "/models",
    "HF_HUB_OFFLINE": "1",
    "MEGAPAIRS_CACHE": "/cache",
    "HTTPS_PROXY": "http://proxy:3128",
    "SSL_CERT_FILE": "/etc/ssl/corporate.pem",
}
STORAGE = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_PROFILE": "site",
    "GOOGLE_APPLICATION_CREDENTIALS": "/keys.json",
}
HUB = {"HF_TOKEN": "secret"}
GIT = {"GIT_SSH_COMMAND": "ssh -i key", "SSH_AUTH_SOCK": "/run/agent"}
WORKER = AIRFLOWS | SEEN_BY_ALL | STORAGE | HUB | GIT
PUBLISHING = {"open_run", "doctor", "version", "promote"}
STAGES = [name for name, command in COMMANDS.items() if command.kind == "stage"] + ["open_run", "doctor"]


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_sees_airflows_variables_and_each_sees_its_own_credentials(stage: str):
    from megapairs.environment import stage_environment

    seen = stage_environment(WORKER, stage)
    assert not set(seen) & set(AIRFLOWS)
    assert seen.items() >= SEEN_BY_ALL.items()
    assert bool(set(seen) & set(STORAGE)) == (stage in PUBLISHING | {"ingest", "ingest_list", "ingest_fetch"})
    assert bool(set(seen) & set(GIT)) == (stage in PUBLISHING)
    assert bool(set(seen) & set(HUB)) == (stage in {"recaption", "embed", "caption", "judge", "train", "evaluate"})


def test_a_site_names_what_its_stages_need_besides_but_never_airflows():
    from megapairs.environment import stage_environment

    allowed = "SOMETHING_OF_THE_SITE, HF_TOKEN,AIRFLOW__CORE__FERNET_KEY"
    seen = stage_environment(WORKER | {"MEGAPAIRS_STAGE_VARIABLES": allowed}, "select")
    assert {"SOMETHING_OF_THE_SITE", "HF_TOKEN"} <= set(seen)
    assert not {"AIRFLOW__CORE__FERNET_KEY", "MEGAPAIRS_STAGE_VARIABLES"} & set(seen)


def test_threads_are_one_unless_the_worker_says_otherwise():
    from megapairs.environment import stage_environment

    assert stage_environment({}, "mine")["OMP_NUM_THREADS"] == "1"
    assert stage_environment({"OMP_NUM_THREADS": "8"}, "mine")["OMP_NUM_THREADS"] == "8"


def test_the_process_that_an_operator_starts_holds_no_secret(
    fake_tasks: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    from megapairs.stage import CloseRun, Stage

    folder = fake_tasks("""env -0 > environment; echo '{"stage": "x"}' """)
    for name, value in (AIRFLOWS | STORAGE).items():
        if name != "AIRFLOW_HOME":
            monkeypatch.setenv(name, value)
    context = {"run_id": "run 1", "params": {}}
    for task, place in (
        (Stage(task_id="a", stage="caption"), folder),
        (CloseRun(), folder.parents[1] / "dataset"),
    ):
        task.execute(context)
        lines = (place / "environment").read_text().split("\0")
        names = {line.partition("=")[0] for line in lines}
        assert not names & (set(AIRFLOWS) - {"AIRFLOW_HOME"})
        assert "PATH" in names
        assert ("AWS_SECRET_ACCESS_KEY" in names) == isinstance(task, CloseRun)
