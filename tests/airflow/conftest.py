"""Airflow is imported with a home of its own, and the bridge and the DAG files by their names, as Airflow sees them."""

import importlib
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
# Before the first import of airflow: it writes its configuration there.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="megapairs-airflow-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "False"
for folder in ("plugins", "dags"):
    if str(PROJECT / folder) not in sys.path:
        sys.path.insert(0, str(PROJECT / folder))

FAKE = """#!/bin/sh
# Stands for the interpreter: `fake -m tasks <stage> ...` says what it was called with, then ends as the test wants.
echo "called: $*"
echo "folder: $(pwd)"
{body}
"""


@pytest.fixture
def fake_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A function that makes TASKS_PYTHON a shell script with the given ending; returns the folder of run 'run 1'."""

    def make(body: str) -> Path:
        script = tmp_path / "fake_python"
        script.write_text(FAKE.format(body=body))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("TASKS_PYTHON", str(script))
        monkeypatch.setenv("MEGAPAIRS_PREFLIGHT", "off")
        monkeypatch.setenv("MEGAPAIRS_RUNS", str(tmp_path / "runs"))
        monkeypatch.setenv("MEGAPAIRS_DATASET", str(tmp_path / "dataset"))
        (tmp_path / "dataset").mkdir(exist_ok=True)
        from megapairs.wiring import run_folder

        folder = run_folder("run 1")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return make


@pytest.fixture
def load_dag() -> Callable[[str], Any]:
    """A function that reads a DAG file afresh, under the environment of the moment, and returns its DAG."""

    def load(name: str) -> Any:
        sys.modules.pop(f"{name}_dag", None)
        return getattr(importlib.import_module(f"{name}_dag"), name)()

    return load
