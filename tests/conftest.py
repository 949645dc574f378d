"""Shared by all tests: no hub is asked, and the tests run from the project's root."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a busy one is slow, not wrong
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("MEGAPAIRS_PROFILE", None)

PROJECT = Path(__file__).resolve().parent.parent


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
