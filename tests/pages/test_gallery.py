"""The gallery: all inside, every text escaped, small enough, the same for the same version; shown by Chromium."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from tasks.__main__ import main
from tasks.config import load_params, overlay, read_raw, resolve
from tasks.pages import gallery
from tasks.pages.render import html
from tasks.store import Store
from tests.support.browser import open_page
from tests.support.fake_run import fill
from tests.support.markup import assert_harmless

JPEG = "data:image/jpeg;base64,"
SCORES = {
    "composed": {"map_at_5": 0.31, "recall_at_1": 0.2, "recall_at_10": 0.5},
    "text_only": {"map_at_5": 0.01, "recall_at_1": 0.0, "recall_at_10": 0.02},
}
EVALUATION = {"metrics": {"base": SCORES, "finetuned": SCORES}}
VERSION = {
    "version": "2026.11.16",
    "parent": None,
    "dataset": "<script>alert(1)</script>",
    "date": "2026-11-16",
    "git_commit": "c" * 40,
    "fingerprint": "f" * 64,
    "rows": {"images": 8, "pairs": 6, "triplets": 5},
    "new_rows": {"images": 8, "pairs": 6, "triplets": 5},
    "drops": {"judge": {"wrong_target": 1}, "ingest": {"near_duplicate": 12}},
}


@pytest.fixture
def root(tmp_path: Path, project: Path) -> Path:
    """Tables of a fake version, without git."""
    changes = {"open_run": {"date": "2026-11-16", "batch": "2026.11.16"}, "version": {"gallery_triplets": 4}}
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump(overlay(resolve(read_raw(project / "params.yaml"), "test"), changes))
    )
    fill(tmp_path, range(0, 8))
    return tmp_path


def build(root: Path, evaluation: dict | None = None) -> str:
    return gallery.build(Store(root), load_params(root / "params.yaml"), VERSION, evaluation)


def test_the_page_holds_all_it_shows_and_escapes_it(root: Path):
    page = build(root, EVALUATION)
    assert page.count('<article class="card">') == 4
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<b>red</b>" not in page and "make it &lt;b&gt;red&lt;/b&gt;" in page
    assert_harmless(page)
    assert not re.search(r"(https?:)?//[a-z]", page.replace("http://www.w3.org", ""))
    assert page.count("<svg") == 3 and "Recall@10" in page
    # what was left out is explained, not only counted
    assert (
        "near duplicate<small>a copy of an image in the dataset: re-encoded, resized or slightly cropped</small>"
        in page
    )
    assert page == build(root, EVALUATION)


def test_hostile_text_is_text_wherever_it_stands(root: Path):
    evil = "\"><img src=x onerror=alert(1)>' <!-- {{ 7 * 7 }}"
    table = Store(root).read_table("triplets").to_pylist()
    row = {**table[0], "triplet_id": evil, "instructions": [evil], "styles": [evil], "query_image_id": evil}
    card = gallery.triplet_card(row, {"similarity_semantic": 0.5}, 0.7)
    version = {**VERSION, "dataset": evil, "version": evil, "parent": evil, "drops": {evil: {evil: 3}}}
    context = {
        **{name: version[name] for name in ("dataset", "version", "date", "fingerprint", "git_commit", "parent")},
        "tiles": gallery.tiles(version),
        "models": gallery.written_by([{"captioner": evil, "judge": evil}]),
        "drops": [{"name": evil, "total": 3, "reasons": [{"name": evil, "why": evil, "count": 3, "percent": 1}]}],
        "encoders": [],
        "retrieval": gallery.retrieval_section({evil: {evil: {"map_at_5": 0.3}}}),
    }
    images = dict.fromkeys((card["query"], card["target"], *(n["image_id"] for n in card["negatives"])), JPEG)
    shown = assert_harmless(html("gallery.html.j2", **context, images=images, cards=[card]))
    assert shown.text.count(evil) >= 12 and ("img", "title", evil) in shown.attributes


def test_a_version_without_triplets_says_so_in_every_part(root: Path):
    params, store = load_params(root / "params.yaml"), Store(root)
    for path in store.table_files("triplets"):
        path.unlink()
    page = gallery.build(store, params, {**VERSION, "drops": {}})
    assert "This version holds no triplets." in page and "Nothing was left out." in page and "<article" not in page


def test_it_says_who_wrote_and_warns_of_the_tiny_checkpoints():
    row = {"captioner": "tasks/sample/checkpoints/vlm", "judge": "Qwen/Qwen3-VL-8B-Instruct"}
    text = gallery.written_by([row])
    assert (
        text.startswith("Written with tasks/sample/checkpoints/vlm, judged by Qwen/Qwen3-VL-8B-Instruct.")
        and "mean nothing" in text
    )
    assert "mean nothing" not in gallery.written_by([{**row, "captioner": "Qwen/Qwen3-VL-8B-Instruct"}])
    assert gallery.written_by([]) == ""


def test_scores_can_be_filled_in_later(root: Path):
    page = build(root)
    assert "Recall@10" not in page
    assert gallery.with_retrieval(page, EVALUATION) == build(root, EVALUATION)


def test_a_page_that_is_too_large_gets_smaller_images_then_fewer_triplets(root: Path, monkeypatch: pytest.MonkeyPatch):
    whole = len(build(root).encode())
    monkeypatch.setattr(gallery, "MAX_BYTES", whole * 2 // 3)
    small = build(root)
    assert len(small.encode()) <= whole * 2 // 3


def test_nearest_similarities_are_those_of_the_naive_search():
    vectors = np.random.default_rng(0).normal(size=(30, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    product = (vectors @ vectors.T).astype(np.float32)
    naive = sorted(s for n in range(30) for s in sorted(np.delete(product[n], n))[-3:])
    assert sorted(gallery.nearest_similarities(vectors, 3, seed=1).tolist()) == pytest.approx(naive, abs=1e-6)
    assert gallery.nearest_similarities(vectors[:1], 3, seed=1).size == 0


def test_the_command_line_reads_a_clone(root: Path, capsys: pytest.CaptureFixture[str]):
    (root / "version.json").write_text(json.dumps(VERSION))
    assert main(["gallery", "--root", str(root), "--out", str(root / "out.html")]) == 0
    assert (root / "out.html").read_text() == build(root)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_opens_it_from_a_file_also_on_a_phone(root: Path, chromium: str, tmp_path: Path, scheme: str):
    file = tmp_path / "gallery.html"
    file.write_text(build(root, EVALUATION))
    with open_page(chromium, viewport={"width": 400, "height": 900}, color_scheme=scheme) as page:
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.goto(file.as_uri())
        assert page.locator("article.card").count() == 4
        page.evaluate("Promise.all(Array.from(document.images, i => { i.loading = 'eager'; return i.decode(); }))")
        assert page.evaluate("Array.from(document.images).every(i => i.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than the screen"
        is_dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 26)"
        assert is_dark == (scheme == "dark") and problems == []
