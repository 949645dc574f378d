"""`make demo` as a newcomer runs it: two versions, one fine-tuning, a summary; then what a researcher finds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import open_page


@pytest.fixture(scope="module")
def demo(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a finished demo leaves; its output is shown when it failed."""
    root = tmp_path_factory.mktemp("demo") / ".demo"
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "demo", "--root", str(root)],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=7200,  # ten minutes on two quiet cores
    )
    print(done.stdout[-6000:], done.stderr[-3000:])
    assert done.returncode == 0, "the demo failed; its last lines are above"
    return root


@pytest.fixture(scope="module")
def summary(demo: Path) -> dict[str, Any]:
    return json.loads((demo / "summary.json").read_text())


def test_two_versions_came_out_and_one_fine_tuning_was_judged(summary: dict[str, Any]):
    assert len(summary["versions"]) == 2
    assert summary["images"] > 2000 and 0 < summary["triplets"] <= summary["pairs"]
    assert isinstance(summary["promoted"], bool) and summary["why"]
    for model in ("base", "finetuned"):
        for query in ("composed", "image_only", "text_only"):
            assert set(summary["metrics"][model][query]) >= {"map_at_5", "recall_at_1", "recall_at_10"}
    assert set(summary["truth"]) >= {"instructions_true", "instructions_complete", "negatives_also_right"}


def test_the_second_week_cost_what_the_second_week_brought(summary: dict[str, Any]):
    for stage in ("embed", "caption", "judge"):
        counts = summary["incremental"][stage]
        assert counts["done"] == counts["new"] > 0 and counts["reused"] > 0, stage


def test_fine_tuning_doubles_the_base(summary: dict[str, Any]):
    assert (
        summary["metrics"]["finetuned"]["composed"]["map_at_5"]
        >= 2 * summary["metrics"]["base"]["composed"]["map_at_5"]
    )


def test_the_fine_tuned_model_uses_both_halves_of_the_query(summary: dict[str, Any]):
    base, tuned = summary["metrics"]["base"], summary["metrics"]["finetuned"]
    composed = tuned["composed"]["map_at_5"]
    assert composed > max(tuned["image_only"]["map_at_5"], tuned["text_only"]["map_at_5"], base["composed"]["map_at_5"])


def test_the_accepted_instructions_are_true(summary: dict[str, Any]):
    assert summary["truth"]["instructions_true"] >= 0.95 and summary["truth"]["negatives_also_right"] <= 0.01


def test_there_are_a_thousand_triplets(summary: dict[str, Any]):
    assert summary["triplets"] >= 1000


def test_a_researcher_reads_every_triplet_of_each_version(demo: Path, summary: dict[str, Any], tmp_path: Path):
    clone = tmp_path / "corpus"
    dvc = [sys.executable, "-m", "dvc", "pull", "-q"]
    subprocess.run(["git", "clone", "-q", str(demo / "origin.git"), str(clone)], check=True)
    subprocess.run(dvc, cwd=clone, check=True)
    code = (
        "import json; from tasks.publish.readers import with_images; v = json.load(open('version.json'));"
        "n = sum(1 for row in with_images('.'));"
        "import datasets; d = datasets.load_dataset('../corpus', 'triplets', split='train', cache_dir='../hf');"
        "negatives = sum(len(i) - 1 for i in d['negative_image_ids']);"
        "print(json.dumps([v['version'], v['rows']['triplets'], n, len(d), negatives]))"
    )
    counts = []
    for tag in (summary["versions"][-1], summary["versions"][0]):
        subprocess.run(["git", "checkout", "-q", tag], cwd=clone, check=True)
        subprocess.run(dvc, cwd=clone, check=True)
        out = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, check=True).stdout
        version, rows, streamed, loaded, negatives = json.loads(out.splitlines()[-1])
        assert tag == f"dataset/{version}" and rows == streamed == loaded > 0
        assert negatives >= 3 * rows
        counts.append(rows)
    assert counts[0] == summary["triplets"] > counts[1]


def test_the_gallery_opens_and_every_image_is_whole(demo: Path, chromium: str):
    with open_page(chromium) as page:
        page.goto((demo / "gallery.html").as_uri())
        assert page.locator("img").count() >= 2 * 24
        # raises for a broken one
        page.evaluate("Promise.all(Array.from(document.images, i => { i.loading = 'eager'; return i.decode(); }))")
        assert page.evaluate("Array.from(document.images).every(i => i.naturalWidth > 0)")
