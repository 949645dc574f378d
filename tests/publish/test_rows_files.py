"""Files of further rows: the same for any number of images in memory, and made anew where their rules changed."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.config import ROW_TASKS
from tasks.publish import rows_files
from tasks.publish.rows_files import MADE_FROM, batches_at_once, read_images, read_sources, update_files
from tasks.store import Store

BATCHES = ("2026.01.04", "2026.01.11", "2026.01.18")


def write_weeks(root: Path) -> Store:
    """Three weeks of four images and one triplet each, which leads to an image of the week before."""
    store = Store(root)
    for week, batch in enumerate(BATCHES):
        ids = [f"{week} {n}" for n in range(4)]
        images = [
            {"image_id": i, "batch": batch, "caption": f"a {i}" if n else None, "license_code": "CC0-1.0"}
            for n, i in enumerate(ids)
        ]
        store.write(store.table_path("images", batch), images, "images")
        captions = [{"image_id": ids[0], "caption": f"seen {ids[0]}", "caption_source": "vlm"}]
        store.write(store.table_path("captions", batch), captions[:week], "captions")  # none in the first week
        triplet = {
            "triplet_id": f"t{week}",
            "pair_id": f"p{week}",
            "query_image_id": ids[1],
            "target_image_id": f"{max(week - 1, 0)} 0",
            "instructions": ["change the background to red"],
            "styles": ["imperative"],
            "negative_image_ids": [ids[1], ids[3]],
            "judge_target": [0.9],
            "description": "both: a cat",
            "captioner": "vlm",
        }
        store.write(store.table_path("triplets", batch), [triplet], "triplets")
        store.write(store.table_path("captioned", batch), [{"pair_id": f"p{week}"}], "captioned")
    return store


def files_at(store: Store) -> list[Path]:
    return [store.folder("data/rows", task, f"{batch}.parquet") for task in ROW_TASKS for batch in BATCHES]


def contents(store: Store) -> dict[str, bytes]:
    return {p.relative_to(store.root).as_posix(): p.read_bytes() for p in files_at(store) if p.exists()}


@pytest.mark.parametrize(("at_once", "groups"), [(1, 3), (8, 2), (100, 1)])
def test_captions_are_read_for_as_many_batches_as_the_bound_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, groups: int
):
    whole = write_weeks(tmp_path / "whole")
    update_files(whole, files_at(whole), "tiny")
    store = write_weeks(tmp_path / "bounded")
    monkeypatch.setattr(rows_files, "IMAGES_AT_ONCE", at_once)
    read = [len(ids) for _, ids in batches_at_once(store, BATCHES)]
    assert len(read) == groups and max(read) <= max(at_once, 5), "a batch names its own four, and one before"
    assert len(update_files(store, files_at(store), "tiny")) == len(files_at(store))
    assert contents(store) == contents(whole) and len(contents(store)) == 12
    assert update_files(store, list(files_at(store)[:6]), "tiny") == []


def test_a_file_whose_negatives_were_unchecked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The rules of an earlier version of the code took an image without a caption as a negative."""
    store = write_weeks(tmp_path)
    paths = [store.folder("data/rows", "caption_to_image", f"{batch}.parquet") for batch in BATCHES]
    with monkeypatch.context() as patch:
        patch.setattr(rows_files, "partners", lambda _: ())
        update_files(store, paths, "tiny")
    assert update_files(store, paths, "tiny") == paths[:2], "those whose triplet leads to the image without one"
    sources = read_sources(store, BATCHES[0], read_images(store, {"0 0", "0 1"}), "tiny")
    assert set(sources.captions) == {"0 1"}
    assert all(MADE_FROM in pq.read_schema(path).metadata for path in paths)
