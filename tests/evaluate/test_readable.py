"""A missing or broken image of a benchmark is a query or a gallery entry less, counted; never a stopped run."""

from pathlib import Path

import pytest
from PIL import Image

from tasks.errors import DataError
from tasks.evaluate.protocols import Benchmark, GalleryItem, Query, Task
from tasks.evaluate.protocols.base import image_reader
from tasks.evaluate.readable import dropped_note, with_readable_images
from tests.support.images import without_palette


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(12):
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / f"{n}.jpg")
    return tmp_path


def benchmark(folder: Path, queries: list[Query], items: dict[str, GalleryItem] | None = None) -> Benchmark:
    gallery = [*map(str, range(12)), *(items or {})]
    reader = image_reader({str(n): folder / f"{n}.jpg" for n in range(12)})
    return Benchmark("b", "circo", "val", {"": ""}, [Task("", queries, gallery)], reader, items or {})


def damage(folder: Path, number: int, how: str) -> None:
    path = folder / f"{number}.jpg"
    if how == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        faulty = {"cut": content[:-300], "empty": b"", "text": b"no image", "no palette": without_palette()}
        path.write_bytes(faulty[how])


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "text", "no palette"])
def test_each_way_in_which_a_query_needs_the_image(folder: Path, how: str):
    queries = [
        Query("reference", "3", "x", ("1",)),
        Query("answer", "0", "x", ("1", "3")),
        Query("candidate", "0", "x", ("1",), candidates=("1", "copy")),
        Query("subset", "0", "x", ("1",), subset=("1", "3")),
        *(Query(f"good{n}", "0", "x", ("1",), candidates=("1", "2")) for n in range(80)),
        Query("text", None, "x", ("1",)),
    ]
    damage(folder, 3, how)
    read = with_readable_images(benchmark(folder, queries, {"copy": GalleryItem("3")}), 0.05)
    assert {q.query_id for q in queries} - {q.query_id for q in read.tasks[0].queries} == {
        "reference", "answer", "candidate", "subset",
    }  # fmt: skip
    assert "3" not in read.tasks[0].gallery and "copy" not in read.tasks[0].gallery and len(read.tasks[0].gallery) == 11
    assert (read.dropped.count, read.dropped.gallery_images) == (4, 1)
    note = dropped_note(read)
    assert note is not None and note.startswith("benchmark b: 4 queries and 1 gallery images are left out: query ref")


def test_an_image_of_the_gallery_alone_costs_no_query(folder: Path):
    damage(folder, 9, "missing")
    read = with_readable_images(benchmark(folder, [Query("q", "0", "x", ("1",))]), 0.0)
    assert len(read.tasks[0].queries) == 1 and read.dropped.gallery_images == 1


def test_whole_files_change_nothing(folder: Path):
    whole = benchmark(folder, [Query("q", "0", "x", ("1",))])
    assert with_readable_images(whole, 0.0) is whole and dropped_note(whole) is None


def test_too_large_a_share_and_a_task_without_queries_stop(folder: Path):
    damage(folder, 3, "missing")
    queries = [Query(f"q{n}", "3" if n < 4 else "0", "x", ("1",)) for n in range(20)]
    with pytest.raises(DataError, match="b: 4 of 20 queries cannot be used, at most 0.05 of them may; query q0"):
        with_readable_images(benchmark(folder, queries), 0.05)
    assert with_readable_images(benchmark(folder, queries), 0.5).dropped.count == 4
    assert with_readable_images(benchmark(folder, queries[1:]), 0.0).dropped.count == 3  # three are free
    with pytest.raises(DataError, match="no query of the benchmark is left"):
        with_readable_images(benchmark(folder, queries[:2]), 1.0)
