"""`python -m tasks doctor`: a sound deployment, and each fault of it with the next step."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.__main__ import main
from tasks.config import parse_params, read_raw, resolve
from tasks.doctor import places
from tasks.doctor.airflow import check_mail, check_pools, check_queues
from tasks.doctor.places import (
    check_disk,
    check_origin,
    check_remote,
    check_runs,
    check_servers,
    model_servers,
    mount_options,
    week_bytes,
)
from tasks.publish.deployment import configure_deployment
from tests.support.served_model import fake_server

WANTED = {"fetch": "default", "cpu": "default", "gpu": "gpu"}
POOLS = {"default_pool": 128, "fetch": 4, "cpu": 2, "gpu": 1}
QUEUES = {"default": 4, "gpu": 1}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """A deployment; its checkout is a commit of params, profiles and DVC's files."""
    root = tmp_path_factory.mktemp("doctor")
    code = root / "code"
    (code / "tasks").mkdir(parents=True)
    shutil.copytree(project / "tasks" / "profiles", code / "tasks" / "profiles")
    for name in (".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml"):
        (code / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(project / name, code / name)
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "code"],
    ):
        subprocess.run(["git", "-C", str(code), *words], check=True)
    configure_deployment(root / "origin.git", root / "dataset", str(root / "remote"), root / "cache", checkout=code)
    return root


@pytest.fixture
def deployment(untouched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [n for n in os.environ if n.startswith("AIRFLOW")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MEGAPAIRS_DATASET", str(untouched / "dataset"))
    monkeypatch.setenv("MEGAPAIRS_RUNS", str(untouched / "runs"))
    monkeypatch.setenv("MEGAPAIRS_DEFAULT_PROFILE", "test")
    return untouched


def doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def facts(**changes: Any) -> str:
    return json.dumps({"pools": POOLS, "queues": QUEUES, "smtp": None, "mail_to": "", "wanted": WANTED, **changes})


def test_a_sound_deployment_has_nothing_to_mend(deployment: Path, capsys: pytest.CaptureFixture[str]):
    code, result = doctor(capsys, "--airflow", facts())
    states = {check["name"]: check["status"] for check in result["checks"]}
    assert code == 0
    assert {"origin", "remote", "runs", "disk", "pool gpu", "queue gpu", "mail"} <= set(states)
    assert {name for name, status in states.items() if status != "ok"} <= {"mail", "disk"}
    assert not list((deployment / "remote").rglob("megapairs-doctor*")), "the probe is gone"
    assert not list((deployment / "runs").iterdir())


def test_without_airflow_it_says_what_was_not_looked_at(deployment: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    assert "no Airflow here: pools, queues and mail were not looked at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"pools": {"fetch": 4, "cpu": 2}}, 78, "pool gpu: there is none"),
        ({"queues": {"default": 4}}, 75, "queue gpu: no worker consumes it -> start one: airflow celery worker -q gpu"),
        ({"queues": {}}, 75, "queue default: no worker"),
    ],
)
def test_what_is_missing_fails_with_the_next_step(
    deployment: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], code: int, text: str
):
    got, error = doctor(capsys, "--airflow", facts(**changes))
    assert got == code and text in error["message"]


def test_a_wrong_value_of_the_form_is_said_and_left_to_open_run(deployment: Path, capsys: pytest.CaptureFixture[str]):
    code, result = doctor(capsys, "--conf", '{"lmit": 5}')
    (found,) = [check for check in result["checks"] if check["name"] == "parameters"]
    assert code == 0 and found["status"] == "warn" and "unknown key 'lmit'" in found["found"]


@pytest.mark.parametrize("sources", ["photos", ["photos", "more"], [{"name": "a", "path": "photos"}]])
def test_every_form_of_sources_is_understood(deployment: Path, capsys: pytest.CaptureFixture[str], sources: Any):
    code, result = doctor(capsys, "--conf", json.dumps({"sources": sources}))
    assert code == 0 and "parameters" not in {check["name"] for check in result["checks"]}


def test_no_clone_is_the_first_thing_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = check_origin(tmp_path)
    assert found.status == "fail" and "is no clone" in found.found and "MEGAPAIRS_DATASET" in found.next_step


def test_an_origin_that_is_gone_fails_and_may_come_back(untouched: Path, tmp_path: Path):
    clone = tmp_path / "clone"
    shutil.copytree(untouched / "dataset", clone, symlinks=True)
    subprocess.run(["git", "-C", str(clone), "remote", "set-url", "origin", str(tmp_path / "gone.git")], check=True)
    found = check_origin(clone)
    assert (found.status, found.may_pass) == ("fail", True) and "git push origin" in found.next_step


@pytest.mark.parametrize("kind", ["a file", pytest.param("no server", marks=pytest.mark.slow)])  # DVC tries again
def test_a_remote_that_cannot_be_written_fails(untouched: Path, tmp_path: Path, kind: str):
    clone = tmp_path / "clone"
    shutil.copytree(untouched / "dataset", clone, symlinks=True)
    (tmp_path / "file").touch()
    config = clone / ".dvc" / "config"
    url = str(tmp_path / "file") if kind == "a file" else "s3://bucket/x"
    more = (
        ""
        if kind == "a file"
        else "\n    endpointurl = http://127.0.0.1:1\n    access_key_id = a\n    secret_access_key = b"
    )
    config.write_text(config.read_text().replace(str(untouched / "remote"), url + more))
    found = check_remote(clone)
    assert found.status == "fail" and ".dvc/config" in found.next_step


def test_slots_beyond_the_workers_processes_are_a_warning():
    (queue,) = [c for c in check_queues({"default": 8, "gpu": 1}, {**POOLS, "gpu": 4}, WANTED) if c.name == "queue gpu"]
    assert queue.status == "warn" and "1 worker processes for 4 slots" in queue.found and "-c 4" in queue.next_step
    assert check_queues(None, POOLS, WANTED) == [], "an executor without queues"


def test_pools_that_could_not_be_read_are_said():
    (only,) = check_pools(None, WANTED)
    assert only.status == "warn" and "megapairs_api" in only.next_step
    assert [c.status for c in check_pools({**POOLS, "cpu": 0}, WANTED)] == ["ok", "fail", "ok"]


def test_mail():
    assert check_mail(None, "").status == "warn"
    assert check_mail(None, "a@b.c").status == "fail"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = check_mail({"host": "127.0.0.1", "port": free.getsockname()[1]}, "a@b.c")
    assert found.status == "fail" and found.may_pass and "smtp_default" in found.next_step


def test_model_servers_answer_and_serve_the_named_model(tmp_path: Path):
    raw = read_raw(Path("params.yaml"))
    with fake_server(tmp_path / "log") as server:
        url = server()
        served = {"engine": "openai", "url": url, "model": "tiny"}
        changes = {"caption": {**served, "writer_url": "http://127.0.0.1:1/v1", "writer": "w"}, "judge": served}
        params = parse_params(resolve(raw, "test", changes))
        asked = model_servers(params)
        assert [role for role, _, _ in asked] == ["caption.model", "caption.writer", "judge.model"]
        good, away, _ = check_servers(asked)
        assert (good.status, away.status, away.may_pass) == ("ok", "fail", True)
        (other,) = check_servers([("judge.model", url, "another")])
        assert other.found == "serves tiny, not another" and "change judge.model" in other.next_step
    assert model_servers(parse_params(resolve(raw, "test", {}))) == []


def test_disk(tmp_path: Path, untouched: Path, monkeypatch: pytest.MonkeyPatch):
    assert week_bytes(untouched / "dataset", 10_000_000) == 10_000_000 * places.IMAGE_BYTES * places.TABLES_FACTOR
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: usage._replace(free=3 << 30))
    assert check_disk(untouched / "dataset", tmp_path / "runs", None).status == "warn"
    full = check_disk(untouched / "dataset", tmp_path / "runs", 1_000_000)
    assert full.status == "fail" and "lower `limit`" in full.next_step


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("rw,nolock", "warn"),
        ("rw,vers=4.2,local_lock=none", "ok"),
        ("rw,local_lock=all", "warn"),
        ("rw,local_lock=flock", "warn"),
    ],
)
def test_locks_that_hold_on_one_host_only(tmp_path: Path, options: str, status: str):
    mounts = f"overlay / overlay rw 0 0\nserver:/x {tmp_path.resolve()} nfs4 {options} 0 0\n"
    assert mount_options(tmp_path.resolve() / "runs", mounts) == ("nfs4", options)
    assert check_runs(tmp_path / "runs", mounts).status == status


def test_a_runs_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "runs").touch()
    found = check_runs(tmp_path / "runs", "")
    assert found.status == "fail" and "write access" in found.next_step
