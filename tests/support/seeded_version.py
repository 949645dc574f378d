"""A sample world, a deployment and its first version from one seed, as a demo's first week makes them.

Run as a program, with PYTHONHASHSEED and TZ of its own: python -m tests.support.seeded_version ROOT PROJECT SEED PARTS
"""

import os
import sys
from pathlib import Path

from tasks.__main__ import COMMANDS, main
from tasks.config import overlay
from tasks.parts import MERGED_STAGES
from tasks.publish.deployment import configure_deployment
from tasks.publish.graph import graph
from tasks.publish.open_run import Deployment, RunRequest, open_run
from tasks.publish.published import DATA_STAGES
from tasks.sample.world import make_world

CONF = {
    "profile": "test",
    "date": "2026-11-16",
    "select": {"pairs_per_batch": 16},
    # many shards and chunks, so that there is something to share
    "ingest": {"shard_images": 12},
    "recaption": {"chunk_images": 1},
    "caption": {"chunk_pairs": 3},
    # what is tested is the sameness, not the models
    "judge": {"threshold": 0.0, "negative_threshold": 1.0, "labelled": None},
    "validate": {"images": {"caption_share_min": 0.0}, "triplets": {"yes_min": 0.0}},
}


def run_in_parts(stage: list[str], parts: int) -> None:
    """A stage as Airflow runs it in parts, the last part first; then what merges them. Judge follows its captions."""
    name = stage[0]
    if name == "ingest":
        assert main(["ingest_list"]) == 0
        for i in range(parts, 0, -1):
            assert main(["ingest_fetch", "--part", f"{i}/{parts}"]) == 0, i
    for i in range(parts, 0, -1) if COMMANDS[name].takes_part and name != "judge" else ():
        assert main([*stage, "--part", f"{i}/{parts}"]) == 0, (stage, i)
        if name == "caption":
            assert main(["judge", "--part", f"{i}/{parts}"]) == 0, i
    if name in MERGED_STAGES or not COMMANDS[name].takes_part:
        assert main(stage) == 0, stage


def build(root: Path, project: Path, seed: int, parts: int) -> None:
    """Everything below `root`; the code is the checkout `project`, the work is done in `parts` parts."""
    make_world(root / "source", seed=seed, images=60, truth=root / "truth.jsonl")
    configure_deployment(root / "origin.git", root / "dataset", str(root / "remote"), root / "cache", checkout=project)
    sources = [{"name": "sample", "path": str(root / "source"), "license_code": "CC0-1.0"}]
    request = RunRequest("manual__1", "dataset", overlay(CONF, {"sources": sources}))
    worktree = open_run(request, Deployment(root / "dataset", root / "runs")).notes[0]
    os.chdir(worktree)
    for node in [n for n in graph(".") if n.name.partition("@")[0] in DATA_STAGES]:
        stage = node.cmd.split()[3:]  # python -m tasks <stage> [item]
        if parts > 1:
            run_in_parts(stage, parts)
        else:
            assert main(stage) == 0, node.name
    assert main(["version"]) == 0


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
