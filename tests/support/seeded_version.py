"""A sample world, a deployment and its first version from one seed, as a demo's first week makes them.

Run as a program, with PYTHONHASHSEED and TZ of its own: python -m tests.support.seeded_version ROOT PROJECT SEED
"""

import os
import sys
from pathlib import Path

from tasks.__main__ import main
from tasks.config import overlay
from tasks.publish.deployment import configure_deployment
from tasks.publish.graph import graph
from tasks.publish.open_run import Deployment, RunRequest, open_run
from tasks.publish.published import DATA_STAGES
from tasks.sample.world import make_world

CONF = {
    "profile": "test",
    "date": "2026-11-16",
    "select": {"pairs_per_batch": 16},
    # what is tested is the sameness, not the models
    "judge": {"threshold": 0.0, "negative_threshold": 1.0, "labelled": None},
    "validate": {"images": {"caption_share_min": 0.0}, "triplets": {"yes_min": 0.0}},
}


def build(root: Path, project: Path, seed: int) -> None:
    """Everything below `root`; the code is the checkout `project`."""
    make_world(root / "source", seed=seed, images=60, truth=root / "truth.jsonl")
    configure_deployment(root / "origin.git", root / "dataset", str(root / "remote"), root / "cache", checkout=project)
    sources = [{"name": "sample", "path": str(root / "source"), "license_code": "CC0-1.0"}]
    request = RunRequest("manual__1", "dataset", overlay(CONF, {"sources": sources}))
    worktree = open_run(request, Deployment(root / "dataset", root / "runs")).notes[0]
    os.chdir(worktree)
    for node in [n for n in graph(".") if n.name.partition("@")[0] in DATA_STAGES]:
        assert main(node.cmd.split()[3:]) == 0, node.name  # python -m tasks <stage> [item]
    assert main(["version"]) == 0


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
