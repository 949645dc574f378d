"""One deployment with a folder as remote for the tests here; each test opens runs of its own."""

from pathlib import Path

import pytest

from tasks.publish.deployment import configure_deployment


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """Root of an empty deployment: origin.git, dataset, remote, cache, runs."""
    root = tmp_path_factory.mktemp("deployment")
    configure_deployment(root / "origin.git", root / "dataset", str(root / "remote"), root / "cache", checkout=project)
    return root
