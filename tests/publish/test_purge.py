"""Purge and gc on a deployment with three versions and a model: what they delete, and that all else still pulls."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.fingerprints.takedown_list import parse_lines
from tasks.models.llm.request_cache import RequestCache
from tasks.publish import gc, purge
from tasks.publish.dvc_repo import commit_outputs
from tasks.publish.git import git, tags
from tasks.publish.objects import Objects
from tasks.publish.open_run import Deployment, RunRequest, close_run, open_run
from tasks.publish.publish import Publication, publish
from tasks.store import Store
from tests.support.fake_run import image, publish_version
from tests.support.takedowns import clone_of, decoded_files, id_of, run_here

pytestmark = pytest.mark.slow
GONE = 10  # an image of the second week; nothing of the first one knows it


@pytest.fixture(scope="module")
def where(deployment: Path) -> Deployment:
    """Three weeks, a model that was trained on the third, and replies of models."""
    for name, day, numbers in (("a", "16", range(0, 6)), ("b", "23", range(8, 13)), ("c", "30", range(13, 17))):
        publish_version(deployment, name, f"2026-11-{day}", numbers)
    where = Deployment(deployment / "dataset", deployment / "runs")
    root = Path(open_run(RunRequest("train", "model", {"date": "2026-12-01"}), where).notes[0])
    (root / "models" / "promoted").mkdir(parents=True)
    (root / "models" / "promoted" / "README.md").write_text("# The model\n")
    commit_outputs(root, [], ["models/promoted"], (root / "dvc.lock").read_bytes())
    files = {path: (root / path).read_bytes() for path in ("params.yaml", "dvc.lock", "models/promoted.dvc")}
    publish(root, Publication("model/2026.12.01", "A model", files))
    close_run(root, where.clone)
    cache = RequestCache(deployment / "request-cache")
    cache.put("0" * 64, [["red, not blue", 1, 1]])  # the description of all pairs of the fixture
    cache.put("1" * 64, [["something else", 1, 1]])
    return where


def holdings_of(where: Deployment) -> Any:
    return purge.find_holdings(where, parse_lines([f"fake:{GONE}.jpg"], "order"))


def test_a_purge_lists_first_and_then_leaves_the_image_nowhere(where: Deployment, tmp_path: Path):
    entries, root = parse_lines([f"fake:{GONE}.jpg, 2026-12-02, illegal"], "order"), where.clone.parent
    first = dict(decoded_files(clone_of(root, tmp_path / "first", "dataset/2026.11.16")))
    found = holdings_of(where)
    assert found.image_ids == {id_of(GONE)} and found.models == ["model/2026.12.01"]
    assert set(found.files) == {"dataset/2026.11.23", "dataset/2026.11.30", "model/2026.12.01"}
    assert {Path(path).parts[1] for path in found.files["dataset/2026.11.23"]} == {
        "images", "embeddings", "neighbours", "pairs", "captioned", "triplets", "export", "dropped", "gallery.html"
    }  # fmt: skip
    assert [path.stem for path in found.replies] == ["0" * 64]
    before = tags(where.clone, "dataset")
    assert len(purge.describe(found, Objects(where.clone))) > 10 and tags(where.clone, "dataset") == before

    done = purge.purge(where, entries, found, retire=False, run=run_here, date="2026-12-07")
    assert done.replaced["dataset/2026.11.23"] == "dataset/2026.11.23.2"
    assert tags(where.clone, "dataset") == ["dataset/2026.11.16", "dataset/2026.11.23.2", "dataset/2026.12.07"]
    assert git(root / "origin.git", "tag", "--list", "dataset/2026.11.30") == ""
    left = holdings_of(where)
    assert left.image_ids == set() and not left.replies
    for name in found.objects:
        assert not (root / "remote" / "files" / "md5" / name[:2] / name[2:]).exists()
        assert not Objects(where.clone).path(name).exists()
    assert dict(decoded_files(clone_of(root, tmp_path / "again", "dataset/2026.11.16"))) == first
    rewritten = clone_of(root, tmp_path / "rewritten", "dataset/2026.11.23.2")
    store = Store(rewritten)
    assert store.read_table("images").num_rows == 10 and store.read_image_bytes(id_of(11)) == image(11)
    traces = [id_of(GONE).encode(), image(GONE)[-90:-10], f"image {GONE}\n".encode()]
    held = {n for n, c in decoded_files(rewritten) if "withdrawn" not in n and any(t in c + b"\n" for t in traces)}
    assert held == set()

    note = git(root / "origin.git", "notes", "--ref=refs/notes/purge", "show", "model/2026.12.01^{commit}")
    assert note.startswith("Trained on 1 images that were withdrawn")
    marked = tags(where.clone, "model")[-1]
    promoted = clone_of(root, tmp_path / "model", marked) / "models" / "promoted" / "README.md"
    assert promoted.read_text().startswith("# The model\n\n## Images withdrawn after training")
    (record,) = [json.loads(line) for line in done.record.read_text().splitlines()]
    assert record["versions"] == done.replaced and record["reasons"] == ["illegal"] and record["replies"] == 1
    assert id_of(GONE) not in done.record.read_text() and f"fake:{GONE}" not in done.record.read_text()


def test_gc_removes_what_no_tag_needs_and_every_tag_still_pulls(where: Deployment, tmp_path: Path):
    root = where.clone.parent
    remote = root / "remote" / "files" / "md5"
    (remote / "ab").mkdir(exist_ok=True)
    (remote / "ab" / ("c" * 30)).write_text("of a run that failed")
    git(where.clone, "tag", "-d", tags(where.clone, "dataset")[0])  # a tag that this clone has not heard of
    dry, kept = gc.collect_garbage(where, in_remote=True, is_dry=True)
    assert {g.where: g.objects > 0 for g in dry}["remote"] and kept > 10 and (remote / "ab" / ("c" * 30)).exists()
    gc.collect_garbage(where, in_remote=True, is_dry=False)
    assert not (remote / "ab" / ("c" * 30)).exists()
    assert [g.objects for g in gc.collect_garbage(where, in_remote=True, is_dry=True)[0]] == [0, 0]
    for number, tag in enumerate(tags(where.clone, "dataset")):
        assert Store(clone_of(root, tmp_path / str(number), tag)).read_table("images").num_rows > 0
