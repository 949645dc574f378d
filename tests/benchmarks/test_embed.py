"""The benchmark of embedding runs from end to end on a tower of two layers; its speeds are not asserted."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import embed as benchmark
from benchmarks.stored_images import stored_photographs

SMALL = ["--photos", "nowhere", "--images", "12", "--side", "64", "--shape", "tiny"]


@pytest.fixture(autouse=True)
def few_turns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark, "TURNS", 1)


def test_it_reports_every_size_and_the_towers(capsys: pytest.CaptureFixture[str]):
    figures = benchmark.main([*SMALL, "--max-side", "160", "300", "--arithmetic", "float32", "int8"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    assert [row["stored_px"] for row in figures["sizes"]] == [160, 300] and figures["ratio"] == figures["sizes"][0][
        "ratio"
    ]
    assert all(row["cosine_min"] > 0.998 for row in figures["sizes"])
    exact, fewer = figures["towers"]
    assert exact["cosine_min"] > 0.99999 and fewer["cosine_min"] > 0.999 and fewer["trained_cosine_min"] > 0.999


def test_the_way_that_a_gpu_goes_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]):
    figures = benchmark.main(
        [*SMALL, "--max-side", "160", "--no-preparation", "--whole-way", "--readers", "3", "--batch", "5"]
    )
    (row,) = figures["gpu"]
    assert row["device"] == "cpu" and row["readers"] == 3 and row["cosine_min"] > 0.999
    assert row["plain_images_per_s"] > 0 and row["ours_images_per_s"] > 0


def test_neighbours_that_moved_and_those_that_did_not_are_counted():
    rows = np.eye(30, dtype=np.float32) + 0.1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    same = benchmark.compared(rows, rows)
    assert same["cosine_min"] == same["top10_overlap"] == 1.0 and same["unrelated_cosine"] < 0.9
    assert benchmark.compared(rows, rows[::-1])["cosine_min"] < 0.9


def test_photographs_are_stored_at_the_size_asked(tmp_path: Path):
    import io

    from PIL import Image

    for n, size in enumerate([(90, 120), (400, 100)]):
        Image.new("RGB", size, (9 * n, 90, 200)).save(tmp_path / f"{n}.jpg")

    def sizes(*args: object) -> list[tuple[int, int]]:
        return [Image.open(io.BytesIO(c)).size for c in stored_photographs(tmp_path, 2, *args)]  # type: ignore[arg-type]

    assert (
        sizes(200) == [(90, 120), (200, 50)]
        and sizes(0) == [(90, 120), (400, 100)]
        and sizes(200, True) == [(150, 200), (200, 50)]
    )
