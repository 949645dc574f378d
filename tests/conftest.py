"""Shared by all tests: no hub is asked, they run from the project's root, folders have markers, workers get files."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# DVC's logger keeps the stderr of its first import: a test's own, under capsys, is closed later.
# vLLM's environment runs some tests too, and has no DVC.
with contextlib.suppress(ModuleNotFoundError):
    import dvc  # noqa: F401

# no deadline: a busy machine is slow, not wrong
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("MEGAPAIRS_PROFILE", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core; stages under Airflow have one thread too
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

PROJECT = Path(__file__).resolve().parent.parent
MARKERS_OF_FOLDERS = {"factory": "factory", "airflow": "airflow", "benchmarks": "benchmark"}
ONE_AIRFLOW = "tests/factory/airflow"  # its files share an Airflow


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark whole folders and the browser's tests; workers of pytest-xdist begin with what takes longest."""
    for item in items:
        for folder in item.path.relative_to(PROJECT).parts[1:-1]:
            if folder in MARKERS_OF_FOLDERS:
                item.add_marker(MARKERS_OF_FOLDERS[folder])
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
    if hasattr(config, "workerinput"):
        items.sort(key=cost_order)


def cost_order(item: pytest.Item) -> list[bool]:
    """Sorts the tests with one Airflow first, then the other factory tests, then benchmarks, then the rest."""
    return [
        not item.nodeid.startswith(ONE_AIRFLOW),
        *(not item.get_closest_marker(m) for m in ("factory", "benchmark")),
    ]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker of pytest-xdist gets whole files, whose tests share fixtures, or the folder that shares an Airflow."""
    from xdist.scheduler import LoadScopeScheduling

    class WholeFiles(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return ONE_AIRFLOW if nodeid.startswith(ONE_AIRFLOW) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # the order of the collection, not the number of tests
    return WholeFiles(config, log)


@pytest.fixture(scope="session")
def project() -> Path:
    """The checkout's root."""
    return PROJECT


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Model paths in params.yaml are relative to the root."""
    monkeypatch.chdir(PROJECT)
    yield


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """Root of an empty deployment with a folder as DVC remote: origin.git, dataset, remote, cache, runs."""
    from tasks.publish.deployment import configure_deployment

    root = tmp_path_factory.mktemp("deployment")
    configure_deployment(root / "origin.git", root / "dataset", str(root / "remote"), root / "cache", checkout=project)
    return root


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium; the browser tests are skipped without one."""
    found = next((p for p in ("chromium", "chromium-browser", "google-chrome") if shutil.which(p)), None)
    if found is None:
        pytest.skip("browser: no Chromium found; `apt-get install chromium` (Debian, Ubuntu), then `make test` again")
    return str(shutil.which(found))
