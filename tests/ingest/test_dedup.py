"""Exact and near duplicates across batches; and the lists that exclude images."""

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.fingerprints import crop_match
from tasks.ingest import decontaminate, dedup
from tasks.ingest import stage as ingest
from tasks.ingest.dedup import DuplicateIndex, copy_groups
from tasks.ingest.rules import NormalizedImage
from tasks.pages.dataset_card import dataset_card
from tasks.store import Store
from tasks.store.shards import shard_path
from tests.support.images import save_jpeg, smooth_image
from tests.support.ingest import folder_params, read_drop_reasons, read_kept


def flat_image(*levels: int) -> NormalizedImage:
    """An image of one hash whose thumbnail is flat, but for its first cells."""
    thumbnail = bytes([*levels, *[100] * (192 - len(levels))])
    return NormalizedImage(content=b"", width_px=8, height_px=8, phash=5, thumbnail=thumbnail)


def test_an_image_between_two_kept_ones_is_a_near_duplicate_of_the_first_and_names_the_other():
    none: dict[str, list] = {"image_id": [], "source_sha256": [], "phash": [], "thumbnail": []}
    index = DuplicateIndex(none, hash_distance_bits=0, thumbnail_max=8.0)
    first, last, between = flat_image(100, 100, 100), flat_image(112, 112, 112), flat_image(106, 106, 106)
    assert index.find("s1", "first", first) is None
    index.add("s1", "first", first)
    assert index.find("s2", "last", last) is None, "too far apart to be copies of each other"
    index.add("s2", "last", last)
    match = index.find("s3", "between", between)
    assert match is not None and (match.reason, match.image_id, match.also) == (
        "near_duplicate",
        "first",
        ("last",),
    )
    assert index.ids == ["first", "last"], "no kept image is withdrawn"


ties = st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(ties, st.randoms(use_true_random=False))
def test_copy_groups_are_the_connected_images_whatever_the_order(ties, random):
    details = [json.dumps({"copy_of": str(of), "also": [str(a) for a in also]}) for of, also in ties]
    groups = copy_groups(details)
    shuffled = details[:]
    random.shuffle(shuffled)
    assert copy_groups(shuffled) == groups
    naive = [{str(of), *map(str, also)} for of, also in ties]
    for one, other in itertools.product(range(10), repeat=2):
        reached, more = {str(one)}, True
        while more:
            wider = reached.union(*(n for n in naive if n & reached))
            more, reached = wider != reached, wider
        if one != other:
            assert any({str(one), str(other)} <= set(g) for g in groups) == (str(other) in reached)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_exact_duplicates_do_not_depend_on_the_batches(tmp_path_factory, weeks: list[int]):
    root = tmp_path_factory.mktemp("weeks")
    source, store = root / "source", Store(root / "run")
    files = [(n, save_jpeg(smooth_image(n % 4), root / "aside" / f"{n}.jpg")) for n in range(8)]  # each image twice
    for week in range(3):
        for n, content in files:
            if weeks[n] == week:
                (source / f"{n}.jpg").parent.mkdir(parents=True, exist_ok=True)
                (source / f"{n}.jpg").write_bytes(content)
        if source.is_dir():
            ingest.run(folder_params(source, f"2026.01.0{week + 1}"), store)
    kept, dropped = set(read_kept(store)), read_drop_reasons(store)
    assert len(kept) == 4 and len(dropped) == 4 and set(dropped.values()) == {"duplicate"}
    assert {int(name[0]) % 4 for name in kept} == {0, 1, 2, 3}


def test_a_slight_crop_is_a_near_duplicate_where_crop_margin_is_set(tmp_path: Path):
    for name in ("plain", "margin"):
        save_jpeg(smooth_image(1), tmp_path / name / "a.jpg")
        save_jpeg(smooth_image(1).crop((6, 3, 189, 187)), tmp_path / name / "b.jpg", 88)
        save_jpeg(smooth_image(2), tmp_path / name / "c.jpg")
    for name, margin in (("plain", 0.0), ("margin", 0.06)):
        store = Store(tmp_path / f"run-{name}")
        ingest.run(folder_params(tmp_path / name, crop_margin=margin), store)
        kept, dropped = set(read_kept(store)), read_drop_reasons(store)
        assert (kept, dropped) == (
            ({"a.jpg", "b.jpg", "c.jpg"}, {}) if not margin else ({"a.jpg", "c.jpg"}, {"b.jpg": "near_duplicate"})
        )


def drawn_on_white(n: int) -> NormalizedImage:
    """One of many look-alikes: a few patches on white, and nearly the same hash."""
    rng = np.random.default_rng(n)
    grid = np.full((64, 64, 3), 245, np.uint8)
    for y, x in rng.integers(4, 48, (3, 2)):
        grid[y : y + 12, x : x + 12] = rng.integers(60, 240, 3)
    return seen(grid, 5 ^ 1 << int(rng.integers(0, 64)))


def seen(grid: np.ndarray, phash: int) -> NormalizedImage:
    thumbnail = grid.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)).astype(np.uint8).tobytes()
    return NormalizedImage(b"", 64, 64, phash, thumbnail, grid.tobytes())


NONE: dict[str, list] = {"image_id": [], "source_sha256": [], "phash": [], "thumbnail": []}


def test_the_work_for_one_image_is_bounded_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch):
    aligned, compared = [], []
    monkeypatch.setattr(dedup, "MAX_THUMBNAILS", 30)
    monkeypatch.setattr(dedup, "crop_distance", lambda *_, **__: aligned.append(1) or 99.0)
    distance = dedup.thumbnail_distance
    monkeypatch.setattr(dedup, "thumbnail_distance", lambda a, b: compared.append(len(b)) or distance(a, b))
    index = DuplicateIndex(NONE, hash_distance_bits=16, thumbnail_max=8.0, crop_margin=0.06)
    count = 3 * dedup.MAX_THUMBNAILS
    for n in range(count):
        image = drawn_on_white(n)
        before = len(aligned)
        assert index.find(f"s{n}", f"i{n}", image) is None or n > 0
        assert len(aligned) - before <= dedup.MAX_ALIGNMENTS
        index.add(f"s{n}", f"i{n}", image)
    assert max(compared) == dedup.MAX_THUMBNAILS and index.limited > count // 2
    assert str(index.limited) in dedup.limited_note(index.limited)


def test_a_copy_among_more_look_alikes_than_are_compared_is_found(monkeypatch: pytest.MonkeyPatch):
    """Its hash is among the nearest; and of the thumbnails that are aligned, its is."""
    monkeypatch.setattr(dedup, "MAX_THUMBNAILS", 30)
    index = DuplicateIndex(NONE, hash_distance_bits=16, thumbnail_max=8.0, crop_margin=0.06)
    for n in range(3 * dedup.MAX_THUMBNAILS):
        index.add(f"s{n}", f"i{n}", drawn_on_white(n))
    target = drawn_on_white(7)
    grid = np.frombuffer(target.grid, np.uint8).reshape(64, 64, 3)
    again = index.find("new", "new", seen(np.clip(grid.astype(int) + 3, 0, 255).astype(np.uint8), target.phash))
    assert again is not None and "i7" in (again.image_id, *again.also)
    zoomed = np.asarray(Image.fromarray(grid[2:63, 1:62]).resize((64, 64), Image.Resampling.BOX))
    crop = index.find("newer", "newer", seen(zoomed, target.phash))
    assert crop is not None and "i7" in (crop.image_id, *crop.also)


def test_images_that_were_not_compared_with_all_are_a_note_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dedup, "MAX_ALIGNMENTS", 0)
    for n in (1, 2):
        canvas = Image.new("RGB", (96, 96), (250, 250, 250))
        canvas.paste((90, 120, 200), (30 + 6 * n, 20, 70 + 6 * n, 60))
        save_jpeg(canvas, tmp_path / "source" / f"{n}.jpg")
    report = ingest.run(folder_params(tmp_path / "source", crop_margin=0.06), Store(tmp_path / "run"))
    assert dedup.limited_note(1) in report.notes


def test_alignments_are_those_of_the_naive_form():
    """Every alignment by the definition: means of the grid's pixels under each cell, weighted by their overlap."""
    rng = np.random.default_rng(3)
    grid = rng.integers(0, 256, (64, 64, 3)).astype(np.float32)
    cells = rng.integers(0, 256, (8, 8, 3)).astype(np.float32)
    _, weights, visible = crop_match._alignments(0.06, 0.06)
    found = crop_match._cell_differences(grid, cells, (weights, visible), (weights, visible))
    for y, x in itertools.product(range(len(weights)), repeat=2):
        means = np.einsum("ir,rcx,jc->ijx", weights[y], grid, weights[x])
        naive = np.abs(means - cells).mean(axis=2)
        naive[(visible[y] < 0.8)[:, None] | (visible[x] < 0.8)] = 0
        assert np.allclose(found[y, :, x], naive, atol=1e-3)


def test_each_list_excludes_images_with_its_reason(tmp_path: Path):
    source = tmp_path / "source"
    for n in range(4):
        save_jpeg(smooth_image(n), source / f"{n}.jpg")
    save_jpeg(smooth_image(2), tmp_path / "benchmark" / "x.jpg", 75)  # the benchmark's is another encoding of 2
    (tmp_path / "benchmark" / "readme.txt").write_text("no image")
    report = decontaminate.build(tmp_path / "benchmark", tmp_path / "benchmark.jsonl")
    assert (report.read, report.written) == (2, 1)
    sums = [hashlib.sha256((source / f"{n}.jpg").read_bytes()).hexdigest() for n in range(4)]
    (tmp_path / "block.txt").write_text(f"# asked for by nobody: {sums[3]}\n{sums[0]}  a person asked\n")
    (tmp_path / "takedown.txt").write_text(f"{sums[1]}\n")
    store = Store(tmp_path / "run")
    lists = {
        "blocklists": [str(tmp_path / "block.txt")],
        "takedown": str(tmp_path / "takedown.txt"),
        "benchmark_hashes": [str(tmp_path / "benchmark.jsonl")],
    }
    report = ingest.run(folder_params(source, **lists), store)
    kept, dropped = set(read_kept(store)), read_drop_reasons(store)
    assert kept == {"3.jpg"} and sorted(dropped.values()) == ["benchmark", "blocked", "taken_down"]
    assert [name for name in dropped if not name.startswith("withheld-")] == ["2.jpg"], "no address of a listed image"
    assert report.read == report.written + sum(report.dropped.values())
    drops = store.count_drops()
    assert "## Benchmark decontamination\n\nNew images were compared with the hashes of `benchmark.jsonl`" in card_of(
        drops, drops, lists["benchmark_hashes"]
    )
    assert (
        ": 1 exact or near copies of a benchmark's images were left out of this version, 1 of all versions so far."
        in card_of(drops, drops, ["b.jsonl"])
    )
    assert ": 0 exact or near copies of a benchmark's images were left out of this version, 1 of all" in card_of(
        drops, {}, ["b.jsonl"]
    )
    assert "is empty); 1 copies were left out of earlier versions" in card_of(drops, {}, [])
    assert "Not done: `ingest.benchmark_hashes` names no list" in card_of({}, {}, [])


def card_of(drops: dict[str, dict[str, int]], new_drops: dict[str, dict[str, int]], lists: list[str]) -> str:
    """The dataset card of a version with these dropped rows."""
    none = dict.fromkeys(("triplets", "images"), 0)
    version = {
        "version": "2026.01.04",
        "fingerprint": "f" * 64,
        "parent": None,
        "rows": none,
        "new_rows": none,
        "drops": drops,
        "new_drops": new_drops,
    }
    version |= {"encoders": {}, "params": {"train": {"held_out_share": 0.1}, "ingest": {"benchmark_hashes": lists}}}
    sizes = {"data/triplets": 0, "data/images": 0}
    return dataset_card(
        version, name="n", license_name="CC0-1.0", exported=0, parquet_bytes=sizes, is_held_out_split=False
    )


def test_fine_textures_stay_and_their_copies_go_also_in_a_later_batch(tmp_path: Path):
    """Six weaves on one shaded cloth: to hash and thumbnail they are one image, and their details decide."""
    y, x = np.mgrid[0:256, 0:256]
    weaves = [x // 8 + y // 8, x // 4, y // 4, (x + y) // 4, (x - y) // 4, x // 3]
    shade = 120 + 50 * np.sin(x / 60) * np.cos(y / 45)
    images = [Image.fromarray((shade + 60 * (weave % 2) - 30).astype(np.uint8)).convert("RGB") for weave in weaves]
    store = Store(tmp_path / "run")
    for n, image in enumerate(images):
        save_jpeg(image, tmp_path / "in" / f"{n}.jpg", quality=95)
        if n < 3:
            save_jpeg(image, tmp_path / "in" / f"{n} copy.jpg", quality=80)
    ingest.run(folder_params(tmp_path / "in", shard_images=2), store)
    assert sorted(read_kept(store)) == [f"{n} copy.jpg" for n in range(3)] + [f"{n}.jpg" for n in range(3, 6)]
    assert read_drop_reasons(store) == {f"{n}.jpg": "near_duplicate" for n in range(3)}
    for n, image in enumerate(images):
        save_jpeg(image.resize((200, 200)), tmp_path / "in" / f"{n} small.jpg", quality=90)
    ingest.run(folder_params(tmp_path / "in", "2026.01.11", shard_images=2), store)
    copies = {row["key"]: json.loads(row["detail"])["copy_of"] for row in store.read_dropped("ingest").to_pylist()}
    ids = {name: row["image_id"] for name, row in read_kept(store).items()}
    kept = [ids.get(f"{n} copy.jpg") or ids[f"{n}.jpg"] for n in range(6)]
    assert [copies.get(f"mine:{n} small.jpg") for n in range(6)] == kept


def test_of_many_textures_the_details_of_a_bounded_number_are_looked_at(monkeypatch: pytest.MonkeyPatch):
    looked: list[int] = []

    def read(row: int) -> bytes:
        looked.append(row)
        return b"another %d" % row

    monkeypatch.setattr(dedup, "differ_in_detail", lambda one, other, thumbnail: other.startswith(b"another"))
    index = DuplicateIndex(NONE, hash_distance_bits=16, thumbnail_max=8.0, read_kept=read)
    for n in range(20):
        image_id = hashlib.sha256(b"another %d" % n).hexdigest()
        assert index.find(f"s{n}", image_id, flat_image(100)) is None
        index.add(f"s{n}", image_id, flat_image(100))
    assert len(looked) == sum(min(n, dedup.MAX_DETAILS) for n in range(20))
    assert index.limited == 20 - dedup.MAX_DETAILS - 1


@pytest.mark.parametrize("damage", ["cut", "zeroed", "a changed bit", "gone"])
def test_a_stored_image_that_is_damaged_stops_no_week_and_is_said(tmp_path: Path, damage: str):
    """Its details cannot be looked at: hash and thumbnail decide, and the report names it."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)).resize((256, 256))
    save_jpeg(image, tmp_path / "in" / "a.jpg", quality=95)
    store = Store(tmp_path / "run")
    ingest.run(folder_params(tmp_path / "in"), store)
    row = read_kept(store)["a.jpg"]
    shard, place = shard_path(store.root, row["shard"]), row["offset_bytes"]
    content = bytearray(shard.read_bytes())
    if damage == "zeroed":
        content[place : place + row["size_bytes"]] = bytes(row["size_bytes"])
    elif damage == "a changed bit":
        content[place + row["size_bytes"] // 2] ^= 4
    shard.write_bytes(bytes(content[: place + 100] if damage == "cut" else content))
    if damage == "gone":
        shard.unlink()
    save_jpeg(image, tmp_path / "in" / "b.jpg", quality=85)
    report = ingest.run(folder_params(tmp_path / "in", "2026.01.11"), store)
    assert report.dropped == {"near_duplicate": 1} and report.read == report.written + 1
    is_said = any("1 stored images are damaged on this disk" in note for note in report.notes)
    assert is_said == (damage != "gone")
