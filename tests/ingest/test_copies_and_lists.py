"""Who is a copy of whom, across batches; and the images that must not come in."""

import hashlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tasks.config import Params, parse_params, read_raw, resolve
from tasks.ingest import decontaminate
from tasks.ingest import stage as ingest
from tasks.ingest.dedup import Corpus, copy_groups
from tasks.ingest.normalize import NormalizedImage
from tasks.pages.dataset_card import dataset_card
from tasks.publish.version import counts
from tasks.store import Store


def params_for(source: Path, batch: str = "2026.01.04", **changes: object) -> Params:
    row = {"name": "mine", "path": str(source), "license_code": "CC0-1.0", "attribution": "me"}
    given = {"open_run": {"batch": batch, "date": batch.replace(".", "-")}, "ingest": {"sources": [row], **changes}}
    return parse_params(resolve(read_raw(Path("params.yaml")), "test", given))


def image(seed: int, side: int = 192) -> Image.Image:
    """Soft blobs: no two seeds are near-duplicates, and a crop stays recognisable."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def saved(image: Image.Image, path: Path, quality: int = 92) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out.getvalue())
    return out.getvalue()


def taken(store: Store) -> tuple[set[str], dict[str, str]]:
    kept = {r["source_uri"].partition(":")[2] for r in store.read_table("images").to_pylist()}
    return kept, {r["key"].partition(":")[2]: r["reason"] for r in store.read_dropped("ingest").to_pylist()}


def of_levels(*levels: int) -> NormalizedImage:
    """An image of one hash whose thumbnail is flat, but for its first cells."""
    thumbnail = bytes([*levels, *[100] * (192 - len(levels))])
    return NormalizedImage(content=b"", width_px=8, height_px=8, phash=5, thumbnail=thumbnail)


def test_a_image_between_two_kept_ones_goes_as_a_copy_of_the_first_and_ties_them():
    none: dict[str, list] = {"image_id": [], "source_sha256": [], "phash": [], "thumbnail": []}
    corpus = Corpus(none, hash_distance_bits=0, thumbnail_max=8.0)
    first, last, between = of_levels(100, 100, 100), of_levels(112, 112, 112), of_levels(106, 106, 106)
    assert corpus.copy_of("s1", "first", first) is None
    corpus.add("s1", "first", first)
    assert corpus.copy_of("s2", "last", last) is None, "too far apart to be copies of each other"
    corpus.add("s2", "last", last)
    bridge = corpus.copy_of("s3", "between", between)
    assert bridge is not None and (bridge.reason, bridge.image_id, bridge.also) == (
        "near_duplicate",
        "first",
        ("last",),
    )
    assert corpus.ids == ["first", "last"], "nothing that is kept is withdrawn"


ties = st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(ties, st.randoms(use_true_random=False))
def test_the_ledgers_groups_are_the_connected_images_whatever_the_order(ties, random):
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


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_exact_copies_do_not_depend_on_how_the_weeks_fall(tmp_path_factory, weeks: list[int]):
    root = tmp_path_factory.mktemp("weeks")
    source, store = root / "source", Store(root / "run")
    files = [(n, saved(image(n % 4), root / "aside" / f"{n}.jpg")) for n in range(8)]  # each image twice
    for week in range(3):
        for n, content in files:
            if weeks[n] == week:
                (source / f"{n}.jpg").parent.mkdir(parents=True, exist_ok=True)
                (source / f"{n}.jpg").write_bytes(content)
        if source.is_dir():
            ingest.run(params_for(source, f"2026.01.0{week + 1}"), store)
    kept, dropped = taken(store)
    assert len(kept) == 4 and len(dropped) == 4 and set(dropped.values()) == {"duplicate"}
    assert {int(name[0]) % 4 for name in kept} == {0, 1, 2, 3}


def test_a_slight_crop_goes_where_the_margin_says_so(tmp_path: Path):
    for name in ("plain", "margin"):
        saved(image(1), tmp_path / name / "a.jpg")
        saved(image(1).crop((6, 3, 189, 187)), tmp_path / name / "b.jpg", 88)
        saved(image(2), tmp_path / name / "c.jpg")
    for name, margin in (("plain", 0.0), ("margin", 0.06)):
        store = Store(tmp_path / f"run-{name}")
        ingest.run(params_for(tmp_path / name, crop_margin=margin), store)
        kept, dropped = taken(store)
        assert (kept, dropped) == (
            ({"a.jpg", "b.jpg", "c.jpg"}, {}) if not margin else ({"a.jpg", "c.jpg"}, {"b.jpg": "near_duplicate"})
        )


def test_lists_keep_images_out_each_with_its_reason(tmp_path: Path):
    source = tmp_path / "source"
    for n in range(4):
        saved(image(n), source / f"{n}.jpg")
    saved(image(2), tmp_path / "benchmark" / "x.jpg", 75)  # the benchmark's is another encoding of 2
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
    report = ingest.run(params_for(source, **lists), store)
    kept, dropped = taken(store)
    assert kept == {"3.jpg"} and dropped == {"0.jpg": "blocked", "1.jpg": "taken_down", "2.jpg": "benchmark"}
    assert report.read == report.written + sum(report.dropped.values())
    drops = counts(store.read_dropped())
    assert "## Benchmark decontamination\nNew images were compared with the hashes of `benchmark.jsonl`" in card_of(
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
