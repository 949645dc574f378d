"""DAG files find the code by MEGAPAIRS_CODE or beside plugins/, from wherever they were unpacked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def imported(plugins: Path, tmp_path: Path, code: Path | None) -> subprocess.CompletedProcess[str]:
    """Import the wiring as Airflow does, with nothing but the plugins folder on sys.path."""
    environment = {"PATH": os.defpath, "PYTHONPATH": str(plugins), "AIRFLOW_HOME": str(tmp_path / "home")}
    if code is not None:
        environment["MEGAPAIRS_CODE"] = str(code)
    script = "import megapairs.code_folder as c, tasks; print(c.code_folder()); print(tasks.__path__[0])"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


def test_a_bundle_finds_the_code(project: Path, tmp_path: Path):
    bundle = shutil.copytree(project / "plugins", tmp_path / "bundle" / "plugins")
    done = imported(bundle, tmp_path, project)
    assert done.stdout.split() == [str(project), str(project / "tasks")], done.stderr
    beside = imported(project / "plugins", tmp_path, None)
    assert beside.stdout.split() == [str(project), str(project / "tasks")], beside.stderr
    lost = imported(bundle, tmp_path, None)
    assert lost.returncode != 0 and "holds no tasks/__main__.py" in lost.stderr


def test_the_commit_of_the_code(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from megapairs.code_folder import code_commit

    monkeypatch.delenv("MEGAPAIRS_COMMIT", raising=False)
    assert len(code_commit(project)) == 40 and code_commit(tmp_path) == ""
    monkeypatch.setenv("MEGAPAIRS_COMMIT", "abc")
    assert code_commit(tmp_path) == "abc"
