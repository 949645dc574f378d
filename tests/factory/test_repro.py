"""`dvc repro` alone, in a clone and without Airflow: the factory runs through, and a second time there is nothing to
do.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.config import overlay, read_raw, resolve
from tasks.publish.git import git
from tasks.publish.graph import graph
from tasks.sample.world import make_world

CHANGES = {
    "open_run": {"date": "2026-11-16", "batch": "2026.11.16"},
    "select": {"pairs_per_batch": 24},
    # what is tested is the graph, not the models
    "judge": {"threshold": 0.0, "negative_threshold": 1.0, "labelled": None},
    "validate": {"images": {"caption_share_min": 0.0}, "triplets": {"yes_min": 0.0}},
    "train": {"steps": 10},
    "evaluate": {"benchmark": None, "truth": None},
}


@pytest.fixture
def clone(tmp_path: Path, project: Path) -> Path:
    """The code as it is, a repository of its own, profile `test` on a small source."""
    root = tmp_path / "clone"
    root.mkdir()
    for name in (".dvc/config", ".dvcignore", ".gitignore", "dvc.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(project / name, root / name)
    for name in ("tasks", "expectations"):
        shutil.copytree(project / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    make_world(tmp_path / "source", seed=5, images=100, truth=tmp_path / "truth.jsonl")
    source = {"ingest": {"sources": [{"name": "sample", "path": str(tmp_path / "source"), "license_code": "CC0-1.0"}]}}
    resolved = overlay(overlay(resolve(read_raw(project / "params.yaml"), "test"), CHANGES), source)
    (root / "params.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "clone")
    return root


def repro(root: Path, *args: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")}
    # dvc.yaml says `python`: the environment's own
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *args], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.factory
def test_dvc_repro_runs_the_factory_and_then_has_nothing_to_do(clone: Path):
    repro(clone)
    locked = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]
    assert set(locked) == {node.name for node in graph(clone)}
    assert (clone / "reports/evaluation.json").exists()
    assert "up to date" in repro(clone)
