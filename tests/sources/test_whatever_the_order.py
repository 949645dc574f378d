"""Within a batch neither the order in which files are found, nor how they are divided, nor the number of workers shows
in the tables.

Drawn by hypothesis over images of all kinds of forms (JPEG, CMYK, palette, transparency, 16 bits, WebP and PNG
animations, GIF, AVIF where there is one), with exact and near copies and damaged files among them, as a folder, as tars
and as a table of URLs. The order of a table's rows and of a tar's members is the source's own and is kept: there, of
two near copies the first stays. Decoding runs in threads here, in processes once.
"""

import csv
import io
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from tasks.config import Params, parse_params, read_raw, resolve
from tasks.ingest import inspect
from tasks.ingest import stage as ingest
from tasks.ingest.normalize import NormalizedImage, Refusal, Rules, read_image
from tasks.store import Store
from tests.ingest.test_copies_and_lists import image
from tests.ingest.test_stage import tables_of
from tests.sources.test_tars import tar_of
from tests.support.web import serving


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@cache
def pool() -> dict[str, bytes]:
    """name -> bytes; `a` and what begins with it are copies of one image, in several forms."""
    clear = image(3, 96).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((96, 96)))
    deep = Image.fromarray(np.asarray(image(4, 96).convert("L"), np.uint16) * 257)
    frames = [image(5, 96), image(6, 96)]
    found = {
        "a.jpg": encoded(image(1, 96), "JPEG", quality=95),
        "a_again.jpg": encoded(image(1, 96), "JPEG", quality=95),
        "a_worse.jpg": encoded(image(1, 96), "JPEG", quality=70),
        "a_lossless.png": encoded(image(1, 96), "PNG"),
        "a_smaller.webp": encoded(image(1, 96).resize((80, 80)), "WEBP"),
        "cmyk.jpg": encoded(image(2, 96).convert("CMYK"), "JPEG"),
        "clear.png": encoded(clear, "PNG"),
        "clear.webp": encoded(clear, "WEBP"),
        "deep.png": encoded(deep, "PNG"),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "animated.png": encoded(frames[1], "PNG", save_all=True, append_images=frames[:1]),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "palette.png": encoded(image(7, 96).quantize(16), "PNG"),
        "turned.jpg": encoded(
            image(8, 96), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        ),
        "grey.jpg": encoded(image(9, 96).convert("L"), "JPEG"),
        "cut.jpg": encoded(image(10, 96), "JPEG")[:900],
        "small.png": encoded(image(11, 20), "PNG"),
        "page.jpg": b"<html>404</html>",
    }
    return found | ({"image.avif": encoded(image(12, 96), "AVIF")} if features.check("avif") else {})


# Near copies: in a table of URLs the first row's stays.
NEAR = (("a.jpg", "a_again.jpg", "a_worse.jpg", "a_lossless.png", "a_smaller.webp"), ("clear.png", "clear.webp"))


class Threads:
    """Stands where ImageWorkers stands, without the processes."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def read(self, content: bytes, *, is_named_image: bool) -> NormalizedImage | Refusal:
        return read_image(content, is_named_image=is_named_image, rules=self.rules)


@contextmanager
def in_threads(block: int = 256) -> Iterator[pytest.MonkeyPatch]:
    """No processes; so many files under way at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "workers_of", lambda config: Threads(inspect.rules_of(config)))
        patch.setattr(ingest, "BLOCK_FILES", block)
        yield patch


def params_for(sources: list[dict[str, Any]], workers: int) -> Params:
    rows = [{"license_code": "CC0-1.0", "attribution": "me", **s} for s in sources]
    changes = {
        "open_run": {"batch": "2026.11.01", "date": "2026-11-01"},
        "ingest": {"sources": rows, "shard_images": 3, "workers": workers},
    }
    return parse_params(resolve(read_raw(Path("params.yaml")), "test", changes))


def kept_by(root: Path, sources: list[dict[str, Any]], workers: int = 2) -> list[str]:
    """image ids in order, after a run into this worktree; every file is one row."""
    store = Store(root)
    report = ingest.run(params_for(sources, workers), store)
    assert report.read == report.written + sum(report.dropped.values())
    return list(store.read_table("images", ["image_id"]).column(0).to_pylist())


def fill(folder: Path, names: list[str], captions: list[str]) -> None:
    """The files, made in this order, and their table, with its rows in that order."""
    for name in names:
        (folder / name[0]).mkdir(parents=True, exist_ok=True)
        (folder / name[0] / name).write_bytes(pool()[name])
    with open(folder / "captions.csv", "w", newline="") as f:
        csv.writer(f).writerows([("path", "caption"), *((f"{name[0]}/{name}", f"a {name}") for name in captions)])


def tars(folder: Path, names: list[str], cuts: list[int]) -> None:
    """The files in tars, divided at these places; tars by name in the files' order."""
    folder.mkdir()
    edges = [0, *sorted(c % (len(names) + 1) for c in cuts), len(names)]
    parts = [(f"{n:02d}.tar", names[a:b]) for n, (a, b) in enumerate(zip(edges, edges[1:], strict=False)) if a < b]
    for name, members in reversed(parts):  # made in another order than they are named
        content: list[Any] = []
        for member in members:
            content += [
                (f"{member[0]}/{member}", pool()[member]),
                (f"{member[0]}/{member.rpartition('.')[0]}.txt", f"a {member}".encode()),
            ]
        (folder / name).write_bytes(tar_of(content))


def shuffling(scan: Callable[..., Any], order: random.Random) -> Callable[..., Any]:
    """os.scandir, as a file system might answer it."""

    @contextmanager
    def scandir(top: Any) -> Iterator[Iterator[Any]]:
        with scan(top) as found:
            entries = list(found)
        order.shuffle(entries)
        yield iter(entries)

    return scandir


some = st.lists(st.sampled_from(sorted(pool())), min_size=2, max_size=9, unique=True)


@settings(max_examples=8, deadline=None)
@given(
    some,
    st.lists(st.integers(0, 9), max_size=2),
    st.integers(1, 5),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_the_tables_are_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    cuts: list[int],
    workers: int,
    block: int,
    order: random.Random,
):
    root = tmp_path_factory.mktemp("order")
    names = sorted(names, key=lambda name: f"{name[0]}/{name}")
    stems = {n.rpartition(".")[0] for n in names}
    fill(root / "one", names, names)
    shuffled = names[:]
    order.shuffle(shuffled)
    fill(root / "two", shuffled, shuffled[::-1])
    with in_threads():
        first = kept_by(
            root / "run1",
            [{"name": "a", "path": str(root / "one")}, {"name": "b", "path": str(root / "two")}],
            workers=1,
        )
    assert len(first) == len(set(first)) <= len(names)
    with in_threads(block) as patch:
        patch.setattr(os, "scandir", shuffling(os.scandir, order))
        second = kept_by(
            root / "run2",
            [{"name": "b", "path": str(root / "one")}, {"name": "a", "path": str(root / "two")}],
            workers=workers,
        )
    assert tables_of(root / "run2") == tables_of(root / "run1") and second == first

    if len(stems) == len(names):  # two members of one key would share a caption
        tars(root / "tars", names, cuts)
        with in_threads(block):
            found = kept_by(root / "run3", [{"name": "t", "path": str(root / "tars" / "*.tar")}], workers=workers)
        assert found == first
    with in_threads(block), serving(root / "one") as url:
        for name, rows in (("run4", names), ("run5", shuffled)):
            (root / f"{name}.csv").write_text("url,caption\n" + "".join(f"{url}/{n[0]}/{n},a {n}\n" for n in rows))
            source = {
                "name": "u",
                "path": str(root / f"{name}.csv"),
                "contact": "me@example.org",
                "delay_s": 0.0,
                "per_host": 8,
                "allow_hosts": ["127.0.0.1"],
            }
            found = kept_by(root / name, [source], workers=workers)
            if name == "run4":
                assert found == first
            elif all(len({pool()[n] for n in names if n in group}) < 2 for group in NEAR):
                assert sorted(found) == sorted(first)
    shutil.rmtree(root)


def test_processes_make_of_it_what_threads_make(tmp_path: Path):
    fill(tmp_path / "files", sorted(pool()), sorted(pool()))
    source = [{"name": "a", "path": str(tmp_path / "files")}]
    by_processes = kept_by(tmp_path / "run1", source, workers=2)
    with in_threads():
        assert kept_by(tmp_path / "run2", source, workers=4) == by_processes
    assert tables_of(tmp_path / "run1") == tables_of(tmp_path / "run2")
    dropped = {
        r["key"].rpartition("/")[2]: r["reason"] for r in Store(tmp_path / "run1").read_dropped("ingest").to_pylist()
    }
    expected = {
        "a_again.jpg": "duplicate",
        "a_worse.jpg": "near_duplicate",
        "a_lossless.png": "near_duplicate",
        "a_smaller.webp": "near_duplicate",
    }
    expected |= {
        "cut.jpg": "undecodable",
        "small.png": "too_small",
        "page.jpg": "undecodable",
        "animated.gif": "not_a_picture",
        "clear.webp": "near_duplicate",
    }
    assert dropped == expected
