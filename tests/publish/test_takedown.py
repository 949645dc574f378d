"""A takedown on a deployment with two versions: what a researcher clones afterwards holds nothing of the images."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tasks.config import ENCODER_ROLES
from tasks.errors import ConfigError
from tasks.fingerprints.takedown_list import parse_lines
from tasks.ingest.withdraw import read_members
from tasks.publish.git import files_at, git, tags
from tasks.publish.open_run import Deployment, RunRequest, open_run
from tasks.publish.published import version_at
from tasks.publish.takedown_run import Takedown, take_down
from tasks.publish.verify import check
from tasks.store import Store
from tests.support.fake_run import image, publish_version
from tests.support.takedowns import clone_of, decoded_files, id_of, run_here

pytestmark = pytest.mark.slow
GONE = (1, 4, 9)  # two of the first week's images, one of the second's


@pytest.fixture(scope="module")
def deployment_of(deployment: Path) -> Path:
    """Two versions: 8 images, then 5 more."""
    publish_version(deployment, "one", "2026-11-16", range(0, 8))
    publish_version(deployment, "two", "2026-11-23", range(8, 13))
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
        "fake:9.jpg",
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


def test_shards_keep_their_names_and_the_other_images_their_bytes(after: Path, before: Path):
    shards = sorted(p.name for p in (before / "data/images").glob("*.tar"))
    assert sorted(p.name for p in (after / "data/images").glob("*.tar")) == shards
    for shard in shards:
        old, new = ((root / "data/images" / shard).read_bytes() for root in (before, after))
        kept = read_members(after / "data/images" / shard)
        members = {m.name: old[m.start : m.end] for m in read_members(before / "data/images" / shard)}
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


def test_the_withdrawal_is_a_version_that_says_what_went(deployment_of: Path, taken: Takedown, after: Path):
    clone = deployment_of / "dataset"
    assert tags(clone, "dataset")[-1] == taken.version
    rows = Store(after).read_table("withdrawn").to_pylist()
    assert {r["id"]: r["reason"] for r in rows if r["kind"] == "image"} == {
        id_of(1): "privacy", id_of(4): "request", id_of(9): "request"
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
        id_of(1), hashlib.sha256(b"4").hexdigest(), "fake:9.jpg", "https://example.org/none.jpg"
    ]  # fmt: skip


def test_older_versions_stay_as_they_were(deployment_of: Path, taken: Takedown, before: Path, tmp_path: Path):
    again = clone_of(deployment_of, tmp_path / "again", "dataset/2026.11.23")
    assert dict(decoded_files(again)) == dict(decoded_files(before))
    assert "data/withdrawn.dvc" not in files_at(deployment_of / "dataset", "dataset/2026.11.23")


def test_what_no_image_has_makes_no_version_and_an_unclear_line_no_run(deployment_of: Path, taken: Takedown):
    entries = parse_lines(["f" * 64], "letter")
    done = take_down(where(deployment_of), entries, "takedown 2", run=run_here, date="2026-11-30")
    assert done.version is None and tags(deployment_of / "dataset", "dataset")[-1] == taken.version
    dry = take_down(where(deployment_of), parse_lines([id_of(2)], "x"), "takedown 3", is_dry=True, run=run_here)
    assert dry.notes[-1].endswith("1 images") and id_of(2) not in (deployment_of / "takedown.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"open_run.takedown: the form, line 2: 'please' is no entry"):
        conf = {"takedown": [f"{id_of(3)}\nplease"]}
        open_run(RunRequest("unclear", "dataset", conf), where(deployment_of))


def test_vectors_of_the_fixture_differ_from_image_to_image():
    """Else the search for vectors above would find another image's."""
    rows = np.random.default_rng(8).normal(size=(13, 8))
    assert len({row.tobytes() for row in rows.astype(np.float16)}) == 13
