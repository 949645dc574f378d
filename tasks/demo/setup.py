"""What the demo runs on, all below one folder: the sample world's images, the benchmark, and a deployment."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.demo.local_airflow import PROJECT
from tasks.errors import TasksError
from tasks.publish.deployment import configure_deployment
from tasks.sample.world import make_world

MARKER = ".megapairs-demo"  # a folder without it is never removed


class DemoFailed(TasksError):
    """A run of the demo failed; the message ends with the failing task's last log lines."""


@dataclass(frozen=True)
class Size:
    """How much of the sample world a profile takes.

    Attributes:
        first, second: files of the two batches, counts.
        queries, gallery: of the held-out benchmark, counts.
    """

    first: int
    second: int
    queries: int
    gallery: int


SIZES = {"demo": Size(2200, 260, 500, 2000), "test": Size(200, 40, 40, 160)}


def empty_root(root: Path) -> None:
    """Remove what an earlier demo made, and nothing else.

    Raises:
        DemoFailed: no demo made the folder.
    """
    if root.exists() and any(root.iterdir()):
        if not (root / MARKER).exists():
            raise DemoFailed(
                f"{root} was not made by a demo (no {MARKER} in it); "
                "name another folder with --root, or remove it yourself"
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / MARKER).write_text("Made by `make demo`, which removes this folder when it starts again.\n")


def make_deployment(root: Path) -> None:
    """Origin, DVC remote, the deployment's clone and the cache below `root`, from the checkout's last commit."""
    configure_deployment(
        root / "origin.git", root / "dataset", str(root / "dvc-remote"), root / "dvc-cache", checkout=PROJECT
    )


def draw_world(root: Path, seed: int, images: int, offset: int) -> dict[str, int]:
    """Draw a batch of the sample world in <root>/source; its truth goes to <root>/truth.jsonl.

    Args:
        images: files of the batch, a count.
        offset: files of the batches before, a count.
    Returns:
        kind of file -> count.
    """
    return make_world(root / "source", seed=seed, images=images, offset=offset, truth=root / "truth.jsonl")


def start_benchmark(root: Path, size: Size) -> subprocess.Popen[bytes]:
    """Start to draw the held-out benchmark, at low priority: it is needed only when a model is evaluated."""
    counts = ["--queries", str(size.queries), "--gallery", str(size.gallery)]
    command = [sys.executable, "-m", "tasks.sample.benchmark", str(root / "benchmark"), *counts]
    if shutil.which("nice"):
        command = ["nice", *command]
    (root / "benchmark").mkdir()
    with open(root / "benchmark.log", "wb") as log:
        return subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)


def finish_benchmark(root: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for the benchmark.

    Raises:
        DemoFailed: it could not be drawn.
    """
    if process.wait() != 0:
        raise DemoFailed(f"the benchmark could not be drawn:\n{(root / 'benchmark.log').read_text()[-2000:]}")


def demo_conf(root: Path, profile: str, date: datetime.date) -> dict[str, Any]:
    """The trigger form's values of the demo's runs: its own folders, and the run's date."""
    source = {
        "name": "sample",
        "path": str(root / "source"),
        "license_code": "CC0-1.0",
        "attribution": "MegaPairs sample world",
    }
    return {
        "profile": profile,
        "sources": [source],
        "date": date.isoformat(),
        "evaluate": {"benchmark": str(root / "benchmark"), "truth": str(root / "truth.jsonl")},
    }
