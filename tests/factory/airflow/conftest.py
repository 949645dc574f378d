"""One deployment (profile test, real stages), one embedded Airflow and one mail server for all stories."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tasks.demo.local_airflow import LocalAirflow
from tasks.demo.setup import make_deployment
from tasks.demo.watch import DATASET_DAG, MODEL_DAG
from tasks.sample.world import make_world
from tests.support.inbox import Inbox, serving_inbox

PHOTOGRAPHS = Path(__file__).resolve().parents[3].parent / "shared" / "photos"
IMAGES = 180  # files of the first batch
FOLDERS = ("origin.git", "dataset", "dvc-remote", "dvc-cache", "runs")  # of a deployment


class Factory:
    """The deployment below `root`, its Airflow and its mails."""

    def __init__(self, root: Path, airflow: LocalAirflow, inbox: Inbox) -> None:
        self.root = root
        self.airflow = airflow
        self.inbox = inbox

    def run(self, conf: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """Trigger dataset_refresh and wait: the run's state, and the state of each finished task."""
        return self.follow(self.airflow.trigger(DATASET_DAG, conf))

    def follow(self, run_id: str) -> tuple[str, dict[str, str]]:
        """Wait for a run: its state, and the state of each finished task."""
        states: dict[str, str] = {}
        for task in self.airflow.watch(DATASET_DAG, run_id):
            states[task["task_id"]] = task["state"]
            if task["state"] == "failed":
                # pytest shows it when the test fails
                print("\n".join(self.airflow.task_log(DATASET_DAG, run_id, task)))
        return self.airflow.run_state(DATASET_DAG, run_id), states

    def published(self) -> str:
        """What researchers see: every ref of origin with its commit."""
        return subprocess.run(
            ["git", "for-each-ref"], cwd=self.root / "origin.git", capture_output=True, text=True, check=True
        ).stdout

    def versions(self) -> list[str]:
        """Tags of the published versions."""
        return re.findall(r"refs/tags/(dataset/\S+)", self.published())

    def source_copy(self, name: str) -> Path:
        """A copy of the source folder, for a poisoned batch."""
        return shutil.copytree(self.root / ".demo" / "source", self.root / name / "source")

    @contextmanager
    def empty_deployment(self) -> Iterator[None]:
        """The same Airflow with nothing published yet; what was published is back afterwards."""
        aside = self.root / "aside"
        aside.mkdir()
        there = [name for name in FOLDERS if (self.root / name).exists()]
        for name in there:
            (self.root / name).rename(aside / name)
        try:
            make_deployment(self.root)
            yield
        finally:
            for name in FOLDERS:
                shutil.rmtree(self.root / name, ignore_errors=True)
            for name in there:
                (aside / name).rename(self.root / name)
            aside.rmdir()


@pytest.fixture(scope="session")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Factory]:
    root = tmp_path_factory.mktemp("factory")
    make_world(root / ".demo" / "source", seed=3, images=IMAGES, truth=root / "truth.jsonl")
    make_deployment(root)
    with serving_inbox() as (inbox, connection):
        changes = {
            "MEGAPAIRS_DEFAULT_PROFILE": "test",
            "MEGAPAIRS_SOURCES_ROOT": str(root),
            "MEGAPAIRS_SOURCE_ROOTS": f"{root.parent}:{PHOTOGRAPHS}",
            "MEGAPAIRS_RETRIES": "0",
            "MEGAPAIRS_MAIL_TO": "data@example.org",
            "AIRFLOW_CONN_SMTP_DEFAULT": connection,
        }
        airflow = LocalAirflow(root, changes)
        try:
            airflow.migrate_and_start()
            airflow.wait_healthy((DATASET_DAG, MODEL_DAG))
            airflow.make_pools()
            airflow.set_paused(DATASET_DAG, False)
            yield Factory(root, airflow, inbox)
        finally:
            airflow.stop()


@pytest.fixture(scope="session")
def first_version(factory: Factory) -> str:
    """A published version; made here when no earlier test has made one."""
    if not factory.versions():
        state, states = factory.run({})
        assert state == "success", states
    return factory.versions()[-1]
