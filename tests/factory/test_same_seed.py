"""Two deployments made from scratch with the same seed publish the same version; another seed gives another one.

Real models, no Airflow: the command lines of dvc.yaml, run in one process a deployment. The processes differ in what
must not matter: where they lie, how Python orders its sets, the time zone, in how many parts the work is done.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.publish.git import git
from tasks.publish.published import version_at


def start(root: Path, project: Path, seed: int, parts: int = 1, **environment: str) -> subprocess.Popen[str]:
    root.mkdir(parents=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")} | environment
    command = [sys.executable, "-m", "tests.support.seeded_version", str(root), str(project), str(seed), str(parts)]
    return subprocess.Popen(command, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(build_process: subprocess.Popen[str]) -> None:
    output, _ = build_process.communicate(timeout=7200)
    assert build_process.returncode == 0, output[-4000:]


def published(root: Path) -> dict[str, str]:
    """SHA-256 of every data file of the version, by name."""
    manifest = json.loads(git(root / "origin.git", "show", "dataset:manifest.json"))
    return {name: facts["sha256"] for name, facts in manifest.items() if name.startswith("data/")}


def fingerprint(root: Path) -> str:
    version = version_at(root / "dataset")
    assert version is not None and version["rows"]["triplets"] > 0, "a version without a triplet proves little"
    return str(version["fingerprint"])


@pytest.mark.factory
def test_the_same_seed_gives_the_same_version_in_one_part_or_seven_and_another_seed_another(
    tmp_path: Path, project: Path
):
    one, two, other = tmp_path / "one", tmp_path / "quite" / "elsewhere", tmp_path / "other"
    running = [
        start(one, project, 7, PYTHONHASHSEED="1", TZ="Asia/Tokyo"),
        start(two, project, 7, parts=7, PYTHONHASHSEED="2", TZ="America/Lima"),
    ]
    for process in running:
        finished(process)
    names = published(one)
    for table in ("images", "pairs", "captioned", "triplets", "embeddings", "neighbours", "dropped", "export"):
        assert any(name.startswith(f"data/{table}/") for name in names), table
    differing = [name for name in names | published(two) if names.get(name) != published(two).get(name)]
    assert differing == []
    assert fingerprint(one) == fingerprint(two)

    finished(start(other, project, 8, PYTHONHASHSEED="1"))
    assert fingerprint(other) != fingerprint(one)
