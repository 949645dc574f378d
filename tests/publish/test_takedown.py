"""Takedown, purge and gc on a deployment with two versions: what is published afterwards, and what is left alone."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset

from tasks.browse.explorer import Explorer
from tasks.browse.published import PublishedVersion
from tasks.config import ENCODER_ROLES, ROW_TASKS
from tasks.errors import EXIT_NOTHING_TO_DO, ConfigError, DataError
from tasks.fingerprints.takedown_list import parse_lines
from tasks.ingest.withdraw import read_members
from tasks.models.llm.request_cache import RequestCache
from tasks.publish import gc, purge
from tasks.publish.audit import audit
from tasks.publish.dvc_repo import commit_outputs
from tasks.publish.git import files_at, git, tags
from tasks.publish.objects import Objects
from tasks.publish.open_run import Deployment, RunRequest, close_run, open_run
from tasks.publish.publish import Publication, publish
from tasks.publish.published import version_at
from tasks.publish.pull import pull
from tasks.publish.purge_scan import Holdings, trained_on
from tasks.publish.readers import with_images
from tasks.publish.remote import outputs_at
from tasks.publish.snapshots import Snapshot
from tasks.publish.takedown_run import Takedown, take_down
from tasks.publish.verify import check
from tasks.reviews.answers import Review, Reviews
from tasks.reviews.searches import FEEDBACK
from tasks.store import Store
from tasks.store.shards import shard_files
from tests.support.fake_run import image, publish_old_version, publish_version
from tests.support.takedowns import clone_of, decoded_files, id_of, run_here

pytestmark = pytest.mark.slow
GONE = (1, 4, 12)  # two of the first week's images, one of the second's


@pytest.fixture(scope="module")
def deployment_of(deployment: Path) -> Path:
    """Two versions: 8 images in the layout of older versions, then 5 more."""
    further = {"version.further_rows": list(ROW_TASKS)}
    publish_old_version(deployment, "one", "2026-11-16", range(0, 8), **further)
    publish_version(deployment, "two", "2026-11-23", range(8, 13), **further)
    return deployment


def where(root: Path) -> Deployment:
    return Deployment(root / "dataset", root / "runs")


@pytest.fixture(scope="module")
def before(deployment_of: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone_of(deployment_of, tmp_path_factory.mktemp("before") / "clone", "dataset/2026.11.23")


@pytest.fixture(scope="module")
def taken(deployment_of: Path, before: Path) -> Takedown:
    """Three images go: by id, by the source's bytes and by source_uri."""
    lines = [
        f"{id_of(1)}, 2026-11-24, privacy",
        hashlib.sha256(b"4").hexdigest(),
        "fake:12.jpg",
        "https://example.org/none.jpg",
    ]
    entries = parse_lines(lines, "letter")
    return take_down(where(deployment_of), entries, "takedown 1", run=run_here, date="2026-11-30")


@pytest.fixture(scope="module")
def after(deployment_of: Path, taken: Takedown, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert taken.version is not None
    return clone_of(deployment_of, tmp_path_factory.mktemp("after") / "clone", taken.version)


def test_a_clone_holds_neither_id_bytes_caption_name_nor_vector_of_them(after: Path, before: Path):
    ids = {id_of(n) for n in GONE}
    traces = {f"{what} of {n}": t for n in GONE for what, t in {
        "id": id_of(n).encode(),
        "bytes": image(n)[-90:-10],
        "caption": f"image {n}\n".encode(),
        "uri": f"fake:{n}.jpg".encode(),
        "source's sum": hashlib.sha256(f"{n}".encode()).hexdigest().encode(),
    }.items()}  # fmt: skip
    found = {(what, name.partition(" ")[0]) for name, content in decoded_files(before) for what, t in traces.items()
             if t in content + b"\n"}  # fmt: skip
    assert {what for what, _ in found} == set(traces), "the search finds each of them in the version before"
    left = {
        (what, name) for name, content in decoded_files(after) for what, t in traces.items() if t in content + b"\n"
    }
    assert {name for _, name in left} == {"data/withdrawn/" + Path(name).name for _, name in left}
    assert {what for what, _ in left} == {f"id of {n}" for n in GONE}
    old, new = Store(before), Store(after)
    for role in ENCODER_ROLES:
        old_ids, vectors, _ = old.read_embeddings(role)
        rows = {i: vectors[n].tobytes() for n, i in enumerate(old_ids)}
        kept, kept_vectors, _ = new.read_embeddings(role)
        assert kept == [i for i in old_ids if i not in ids]
        assert all(kept_vectors[n].tobytes() == rows[i] for n, i in enumerate(kept))
        stored = b"".join(p.read_bytes() for p in (after / "data").rglob("*.npy"))
        assert not any(rows[i] in stored for i in ids)


def test_a_version_after_one_of_the_old_layout_has_a_folder_for_its_tables_alone(
    deployment_of: Path, before: Path, tmp_path: Path
):
    old = Objects(deployment_of / "dataset").files_at("refs/tags/dataset/2026.11.16")
    assert {"data/images/2026.11.16-00000.tar", "data/export/2026.11.16.parquet"} <= set(old)
    assert [p.name for p in shard_files(before)] == ["2026.11.16-00000.tar", "2026.11.23-00000.tar"]
    assert {p.parent.name for p in shard_files(before)} == {"shards"}
    for table, rows in (("images", 13), ("triplets", 7), ("export", 7)):
        assert len(pandas.read_parquet(before / "data" / table)) == rows, table
    assert len(list(with_images(before))) == 7 and check(before) > 20
    # both layouts are read where they lie: a diff, the pages of a version, a clone of the old one
    first = Snapshot.of_tag(deployment_of / "dataset", "2026.11.16")
    assert first.image_bytes(id_of(3)) == image(3)
    version = PublishedVersion(deployment_of / "dataset", "2026.11.16")
    assert Explorer.of(version).image(id_of(3)) == image(3)
    there = clone_of(deployment_of, tmp_path / "old", "dataset/2026.11.16")
    assert len(list(with_images(there))) == 5 and check(there) > 10
    assert pull(there, targets=["images"]) == 0


def test_shards_keep_their_names_and_the_other_images_their_bytes(after: Path, before: Path):
    shards = sorted(p.name for p in (before / "data/shards").glob("*.tar"))
    assert sorted(p.name for p in (after / "data/shards").glob("*.tar")) == shards
    for shard in shards:
        old, new = ((root / "data/shards" / shard).read_bytes() for root in (before, after))
        kept = read_members(after / "data/shards" / shard)
        members = {m.name: old[m.start : m.end] for m in read_members(before / "data/shards" / shard)}
        assert len(kept) < len(members) and all(new[m.start : m.end] == members[m.name] for m in kept)
    store = Store(after)
    numbers = [n for n in range(13) if n not in GONE]
    assert all(store.read_image_bytes(id_of(n)) == image(n) for n in numbers)
    assert store.read_table("images").num_rows == len(numbers)


def test_exports_hold_the_triplets_and_nothing_else(after: Path):
    triplets = Store(after).read_table("triplets").to_pylist()
    exported = [
        row for path in sorted((after / "data/export").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    assert triplets and [r["triplet_id"] for r in exported] == [r["triplet_id"] for r in triplets]
    assert [r["negative_image_ids"] for r in exported] == [r["negative_image_ids"] for r in triplets]
    assert check(after) > 0


def test_further_rows_are_those_of_the_triplets_and_images_that_stay(after: Path):
    store = Store(after)
    made_of = {
        True: sorted(store.read_table("images", ["image_id"])["image_id"].to_pylist()),
        False: sorted(store.read_table("triplets", ["triplet_id"])["triplet_id"].to_pylist()),
    }
    counts = json.loads((after / "version.json").read_text())["further_rows"]
    assert set(counts) == set(ROW_TASKS) - {"difference_classification"}, "prose of one kind: no kind to choose from"
    for task, count in counts.items():
        rows = load_dataset(str(after), task, split="train", cache_dir=str(after / ".cache"))
        assert len(rows) == count
        assert sorted(rows["source_id"]) == made_of["caption" in task]
        named = ("query_image_ids", "target_image_ids", "negative_image_ids")
        for row in rows:
            assert len(row["licenses"]) == sum(len(row[column]) for column in named)


def test_the_withdrawal_is_a_version_that_says_what_went(deployment_of: Path, taken: Takedown, after: Path):
    clone = deployment_of / "dataset"
    assert tags(clone, "dataset")[-1] == taken.version
    rows = Store(after).read_table("withdrawn").to_pylist()
    assert {r["id"]: r["reason"] for r in rows if r["kind"] == "image"} == {
        id_of(1): "privacy", id_of(4): "request", id_of(12): "request"
    }  # fmt: skip
    assert {r["kind"] for r in rows} == {"image", "pair", "triplet"} and all(r["withdrawn_on"] for r in rows)
    assert [note.rpartition(": ")[2] for note in taken.notes] == ["1 images", "1 images", "1 images", "0 images"]
    params = git(clone, "show", f"{taken.version}:params.yaml")
    assert "letter" not in params and not any(id_of(n) in params or f"fake:{n}" in params for n in GONE)
    assert "3 images were withdrawn" in (after / "README.md").read_text()
    record = version_at(clone, f"refs/tags/{taken.version}") or {}
    assert record["rows"]["images"] == 10 and record["new_rows"]["triplets"] == 0
    assert not (deployment_of / "runs").exists() or not any((deployment_of / "runs").glob("takedown*"))
    listed = [json.loads(line) for line in (deployment_of / "takedown.jsonl").read_text().splitlines()]
    assert [row.get("sha256") or row.get("source_uri") or row.get("url") for row in listed] == [
        id_of(1), hashlib.sha256(b"4").hexdigest(), "fake:12.jpg", "https://example.org/none.jpg"
    ]  # fmt: skip


def require_whole(root: Path, tag: str) -> None:
    """Every object that a tag names lies in the remote with the content that its name says."""
    remote = root / "remote" / "files" / "md5"
    for name in Objects(root / "dataset").named_at(f"refs/tags/{tag}"):
        content = (remote / name[:2] / name[2:]).read_bytes()
        assert hashlib.md5(content).hexdigest() == name.removesuffix(".dir")


def test_older_versions_stay_as_they_were(deployment_of: Path, taken: Takedown):
    for tag in ("dataset/2026.11.16", "dataset/2026.11.23"):
        require_whole(deployment_of, tag)
        assert "data/withdrawn.dvc" not in files_at(deployment_of / "dataset", tag)


def test_what_no_image_has_makes_no_version_and_an_unclear_line_no_run(deployment_of: Path, taken: Takedown):
    def without_news(worktree: Path, words: Sequence[str]) -> int:
        return EXIT_NOTHING_TO_DO if words == ["version"] else 0

    done = take_down(where(deployment_of), parse_lines(["f" * 64], "x"), "2", run=without_news, date="2026-11-30")
    assert done.version is None and "f" * 64 in (deployment_of / "takedown.jsonl").read_text()
    dry = take_down(where(deployment_of), parse_lines([id_of(2)], "x"), "3", is_dry=True, date="2026-11-30")
    assert dry.notes[-1].endswith("1 images") and id_of(2) not in (deployment_of / "takedown.jsonl").read_text()
    assert tags(deployment_of / "dataset", "dataset")[-1] == taken.version
    with pytest.raises(ConfigError, match=r"open_run.takedown: the form, line 2: 'please' is no entry"):
        open_run(RunRequest("unclear", "dataset", {"takedown": [f"{id_of(3)}\nplease"]}), where(deployment_of))
    with pytest.raises(DataError, match=r"`ingest` ended with exit code 65.*--run-id 4"):
        take_down(where(deployment_of), parse_lines(["e" * 64], "x"), "4", run=lambda *_: 65, date="2026-11-30")
    close_run(where(deployment_of).worktree("4"), deployment_of / "dataset")


# --- purge and gc ----------------------------------------------------------------------------------------------------

PURGED = 10  # of the second week: in both later versions, in none of the first week's files


@pytest.fixture(scope="module")
def with_model(deployment_of: Path, taken: Takedown) -> Deployment:
    """The deployment with a model that was trained on the newest version, and kept replies of models."""
    here = where(deployment_of)
    root = Path(open_run(RunRequest("train", "model", {"date": "2026-12-01"}), here).notes[0])
    (root / "models" / "promoted").mkdir(parents=True)
    (root / "models" / "promoted" / "README.md").write_text("# The model\n")
    commit_outputs(root, [], ["models/promoted"], (root / "dvc.lock").read_bytes())
    files = {path: (root / path).read_bytes() for path in ("params.yaml", "dvc.lock", "models/promoted.dvc")}
    publish(root, Publication("model/2026.12.01", "A model", files))
    close_run(root, here.clone)
    replies = RequestCache(deployment_of / "request-cache")
    replies.put("0" * 64, [["red, not blue", 1, 1]])  # the description of all pairs of the fixture
    replies.put("1" * 64, [["something else", 1, 1]])
    for query, target in ((PURGED, 11), (11, 9), (9, PURGED)):
        Reviews(here.clone).add(
            Review("", "ann", "v", f"t{query}", "in blue", id_of(query), id_of(target), "wrong", text="on a lake")
        )
    with (deployment_of / "reviews.jsonl").open("a") as file:
        file.write(f'{{"query": "{id_of(PURGED)}", half a li\n')
    feedback = deployment_of / "studio" / ".run" / FEEDBACK
    uploads = feedback.with_suffix("")
    uploads.mkdir(parents=True)
    for name, first in (("upload-1", PURGED), ("upload-2", 11)):
        (uploads / f"{name}.jpg").write_bytes(b"pixels")
        with feedback.open("a") as file:
            file.write(json.dumps({"query_image": name, "text": "on a lake", "should_be_first": id_of(first)}) + "\n")
    return here


ORDER = parse_lines([f"fake:{PURGED}.jpg, 2026-12-02, illegal"], "order")


class Listed(NamedTuple):
    """What a purge without --yes says, and the versions afterwards."""

    holdings: Holdings
    lines: list[str]
    versions: list[str]


@pytest.fixture(scope="module")
def listed(with_model: Deployment) -> Listed:
    found = purge.find_holdings(with_model, ORDER)
    return Listed(found, purge.describe(found, Objects(with_model.clone)), tags(with_model.clone, "dataset"))


@pytest.fixture(scope="module")
def purged(with_model: Deployment, listed: Listed) -> purge.Purged:
    return purge.purge(with_model, ORDER, listed.holdings, retire=False, run=run_here, date="2026-12-07")


def test_a_purge_lists_first_and_changes_nothing(listed: Listed, taken: Takedown):
    found = listed.holdings
    assert found.image_ids == {id_of(PURGED)} and found.models == ["model/2026.12.01"]
    assert set(found.files) == {"dataset/2026.11.23", taken.version, "model/2026.12.01"}
    kinds = {Path(path).parts[1] for path in found.files["dataset/2026.11.23"]}
    assert kinds >= {
        "images",
        "embeddings",
        "neighbours",
        "pairs",
        "captioned",
        "triplets",
        "export",
        "rows",
        "gallery.html",
    }
    assert [path.stem for path in found.replies] == ["0" * 64]
    assert any("data/shards/2026.11.23-00000.tar" in line for line in listed.lines)
    assert listed.versions[-1] == taken.version


def test_a_purge_leaves_the_image_nowhere(
    with_model: Deployment, taken: Takedown, listed: Listed, purged: purge.Purged, tmp_path: Path
):
    done, found, root = purged, listed.holdings, with_model.clone.parent
    assert done.replaced == {"dataset/2026.11.23": "dataset/2026.11.23.2", taken.version: "dataset/2026.12.07"}
    kept = ["dataset/2026.11.16", "dataset/2026.11.23.2", "dataset/2026.12.07"]
    assert tags(with_model.clone, "dataset") == kept
    assert git(root / "origin.git", "tag", "--list", "dataset/*").split() == kept
    assert done.texts == 4
    answers = (root / "reviews.jsonl").read_text()
    assert id_of(PURGED) not in answers and [r.query for r in Reviews(with_model.clone).read()] == [id_of(11)]
    assert id_of(PURGED) not in (root / "studio" / ".run" / FEEDBACK).read_text()
    assert [p.stem for p in (root / "studio" / ".run").rglob("*.jpg")] == ["upload-2"]
    left = purge.find_holdings(with_model, ORDER)
    assert left.image_ids == set() and not left.replies and len(RequestCache(root / "request-cache")) == 1
    for name in found.objects:
        assert not (root / "remote" / "files" / "md5" / name[:2] / name[2:]).exists()
        assert not Objects(with_model.clone).path(name).exists()
    for tag in kept:
        require_whole(root, tag)
    rewritten = clone_of(root, tmp_path / "rewritten", "dataset/2026.11.23.2")
    store = Store(rewritten)
    # of 13: the purged one, and the three that the deployment's list names by now
    assert store.read_table("images").num_rows == 9 and store.read_image_bytes(id_of(11)) == image(11)
    traces = [id_of(PURGED).encode(), image(PURGED)[-90:-10], f"image {PURGED}\n".encode()]
    held = {n for n, c in decoded_files(rewritten) if "withdrawn" not in n and any(t in c + b"\n" for t in traces)}
    assert held == set()

    note = git(root / "origin.git", "notes", "--ref=refs/notes/purge", "show", "model/2026.12.01^{commit}")
    assert note.startswith("Trained on 1 images that were withdrawn")
    marked = Objects(with_model.clone).files_at("refs/tags/model/2026.12.07")["models/promoted/README.md"]
    assert b"# The model\n\n## Images withdrawn after training" in Objects(with_model.clone).read(marked)
    (record,) = [json.loads(line) for line in done.record.read_text().splitlines()]
    assert record["versions"] == done.replaced and record["reasons"] == ["illegal"] and record["replies"] == 1
    assert id_of(PURGED) not in done.record.read_text() and f"fake:{PURGED}" not in done.record.read_text()
    assert [path.name for path in root.glob("purge*")] == ["purges.jsonl"]
    audited = audit(with_model.clone)
    assert not any(state["lost"] for state in audited.values()) and audited["model/2026.12.01"]["purged"] > 5


def test_a_model_was_trained_on_what_its_training_locked_not_on_the_tags_own_data(
    with_model: Deployment, purged: purge.Purged
):
    """A version may come out between a training and its promotion: the tag then has the newer one's data."""
    objects, clone = Objects(with_model.clone), with_model.clone
    old, new = (objects.files_at(f"refs/tags/dataset/{name}") for name in ("2026.11.16", "2026.12.07"))
    [folder] = [o.md5 for o in outputs_at(clone, "refs/tags/dataset/2026.11.16") if o.path == "data/triplets"]
    lock = {"stages": {"train": {"cmd": "", "deps": [{"path": "data/triplets", "md5": folder}]}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.publish.purge_scan.read_at", lambda *_: yaml.safe_dump(lock).encode())
        found, is_whole = trained_on(objects, "model/2026.12.01", new)
        assert is_whole and found == {p: n for p, n in old.items() if p.startswith("data/triplets/")}
        lock["stages"]["train"]["deps"][0]["md5"] = "0" * 32 + ".dir"
        found, is_whole = trained_on(objects, "model/2026.12.01", new)
        assert not is_whole and found == {p: n for p, n in new.items() if p.startswith("data/triplets/")}


def test_an_object_that_was_altered_in_the_remote_is_not_looked_at(with_model: Deployment, purged: purge.Purged):
    clone, root = with_model.clone, with_model.clone.parent
    files = Objects(clone).files_at("refs/tags/dataset/2026.12.07")
    path, name = next((p, n) for p, n in sorted(files.items()) if p.startswith("data/pairs/"))
    cached, remote = Objects(clone).path(name), root / "remote" / "files" / "md5" / name[:2] / name[2:]
    content = remote.read_bytes()
    cached.unlink()
    remote.chmod(0o644)
    remote.write_bytes(content[:-1] + b"?")
    try:
        with pytest.raises(DataError, match=f"altered in the remote: {path}"):
            Snapshot.of_tag(clone, "2026.12.07").locate(path)
        with pytest.raises(DataError, match=f"object {name}: altered in the remote"):
            Objects(clone).read(name)
    finally:
        remote.write_bytes(content)
    assert Snapshot.of_tag(clone, "2026.12.07").locate(path).read_bytes() == content


def test_gc_removes_what_no_tag_needs_and_every_tag_stays_whole(with_model: Deployment, purged: purge.Purged):
    root, clone = with_model.clone.parent, with_model.clone
    stray = root / "remote" / "files" / "md5" / "ab" / ("c" * 30)
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("of a run that failed")
    git(clone, "tag", "-d", tags(clone, "dataset")[0])  # a tag that this clone has not heard of
    dry, kept = gc.collect_garbage(with_model, in_remote=True, is_dry=True)
    assert {g.where: g.objects > 0 for g in dry}["remote"] and kept > 10 and stray.exists()
    gc.collect_garbage(with_model, in_remote=True, is_dry=False)
    assert not stray.exists()
    assert [g.objects for g in gc.collect_garbage(with_model, in_remote=True, is_dry=True)[0]] == [0, 0]
    for tag in tags(clone, "dataset"):
        require_whole(root, tag)
    needed = next(iter(Objects(clone).named_at("refs/tags/dataset/2026.12.07")))
    lost = root / "remote" / "files" / "md5" / needed[:2] / needed[2:]
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(DataError, match="gc: the remote lacks 1 of .* nothing is removed"):
        gc.collect_garbage(with_model, in_remote=True, is_dry=False)
    lost.write_bytes(content)


def test_vectors_of_the_fixture_differ_from_image_to_image():
    """Else the search for vectors above would find another image's."""
    rows = np.random.default_rng(8).normal(size=(13, 8))
    assert len({row.tobytes() for row in rows.astype(np.float16)}) == 13
