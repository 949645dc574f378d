"""Within a batch neither the order of a directory, nor how files are divided, nor the number of workers affects the
tables.

Drawn by hypothesis over images of many forms (JPEG, CMYK, palette, transparency, 16 bits, WebP and PNG animations, GIF,
AVIF where supported), with duplicates, near duplicates and damaged files among them, as a folder, as tars and as a
table of URLs. The order of a table's rows and of a tar's members is the source's own and is kept: there, of two near
duplicates the first stays. Decoding runs in threads here, in processes once.
"""

import csv
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

from tasks.ingest import history, inspect
from tasks.ingest import stage as ingest
from tasks.ingest.normalize import normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection
from tasks.store import Store
from tests.support.images import encode, smooth_image
from tests.support.ingest import hash_files, ingest_params
from tests.support.tars import make_tar
from tests.support.web import serving


@cache
def sample_files() -> dict[str, bytes]:
    """name -> bytes; `a` and what begins with it are copies of one image, in several forms."""
    clear = smooth_image(3, 96).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((96, 96)))
    deep = Image.fromarray(np.asarray(smooth_image(4, 96).convert("L"), np.uint16) * 257)
    frames = [smooth_image(5, 96), smooth_image(6, 96)]
    files = {
        "a.jpg": encode(smooth_image(1, 96), "JPEG", quality=95),
        "a_again.jpg": encode(smooth_image(1, 96), "JPEG", quality=95),
        "a_worse.jpg": encode(smooth_image(1, 96), "JPEG", quality=70),
        "a_lossless.png": encode(smooth_image(1, 96), "PNG"),
        "a_smaller.webp": encode(smooth_image(1, 96).resize((80, 80)), "WEBP"),
        "cmyk.jpg": encode(smooth_image(2, 96).convert("CMYK"), "JPEG"),
        "clear.png": encode(clear, "PNG"),
        "clear.webp": encode(clear, "WEBP"),
        "deep.png": encode(deep, "PNG"),
        "animated.webp": encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "animated.png": encode(frames[1], "PNG", save_all=True, append_images=frames[:1]),
        "animated.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "palette.png": encode(smooth_image(7, 96).quantize(16), "PNG"),
        "turned.jpg": encode(
            smooth_image(8, 96), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        ),
        "grey.jpg": encode(smooth_image(9, 96).convert("L"), "JPEG"),
        "cut.jpg": encode(smooth_image(10, 96), "JPEG")[:900],
        "small.png": encode(smooth_image(11, 20), "PNG"),
        "page.jpg": b"<html>404</html>",
    }
    return files | ({"image.avif": encode(smooth_image(12, 96), "AVIF")} if features.check("avif") else {})


# Near duplicates: in a table of URLs that of the first row stays.
NEAR = (("a.jpg", "a_again.jpg", "a_worse.jpg", "a_lossless.png", "a_smaller.webp"), ("clear.png", "clear.webp"))


class ThreadWorkers:
    """Replaces ImageWorkers: decodes in the calling thread."""

    def __init__(self, rules: NormalizationRules) -> None:
        self.rules = rules

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def read(self, content: bytes, *, is_named_image: bool) -> NormalizedImage | Rejection:
        return normalize_image(content, is_named_image=is_named_image, rules=self.rules)


@contextmanager
def decoding_in_threads(block: int = 256) -> Iterator[pytest.MonkeyPatch]:
    """No processes; at most `block` files under way at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "make_workers", lambda config: ThreadWorkers(inspect.normalization_rules(config)))
        for module in (inspect, history):
            patch.setattr(module, "BLOCK_FILES", block)
        yield patch


def run_ingest(root: Path, sources: list[dict[str, Any]], workers: int = 2) -> list[str]:
    """image ids in order, after a run into this worktree; every file is one row."""
    store = Store(root)
    report = ingest.run(ingest_params(sources, "2026.11.01", shard_images=3, workers=workers), store)
    assert report.read == report.written + sum(report.dropped.values())
    return list(store.read_table("images", ["image_id"]).column(0).to_pylist())


def write_folder(folder: Path, names: list[str], captions: list[str]) -> None:
    """The files, made in this order, and their table, with its rows in that order."""
    for name in names:
        (folder / name[0]).mkdir(parents=True, exist_ok=True)
        (folder / name[0] / name).write_bytes(sample_files()[name])
    with open(folder / "captions.csv", "w", newline="") as f:
        csv.writer(f).writerows([("path", "caption"), *((f"{name[0]}/{name}", f"a {name}") for name in captions)])


def write_tars(folder: Path, names: list[str], cuts: list[int]) -> None:
    """The files in tars, divided at these places; tars by name in the files' order."""
    folder.mkdir()
    edges = [0, *sorted(c % (len(names) + 1) for c in cuts), len(names)]
    parts = [(f"{n:02d}.tar", names[a:b]) for n, (a, b) in enumerate(zip(edges, edges[1:], strict=False)) if a < b]
    for name, members in reversed(parts):  # made in another order than they are named
        content: list[Any] = []
        for member in members:
            content += [
                (f"{member[0]}/{member}", sample_files()[member]),
                (f"{member[0]}/{member.rpartition('.')[0]}.txt", f"a {member}".encode()),
            ]
        (folder / name).write_bytes(make_tar(content))


def shuffled_scandir(scan: Callable[..., Any], order: random.Random) -> Callable[..., Any]:
    """os.scandir with its entries in a random order."""

    @contextmanager
    def scandir(top: Any) -> Iterator[Iterator[Any]]:
        with scan(top) as directory:
            entries = list(directory)
        order.shuffle(entries)
        yield iter(entries)

    return scandir


file_names = st.lists(st.sampled_from(sorted(sample_files())), min_size=2, max_size=9, unique=True)


@settings(max_examples=8, deadline=None)
@given(
    file_names,
    st.lists(st.integers(0, 9), max_size=2),
    st.integers(1, 5),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_order_division_and_workers_do_not_affect_the_tables(
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
    write_folder(root / "one", names, names)
    shuffled = names[:]
    order.shuffle(shuffled)
    write_folder(root / "two", shuffled, shuffled[::-1])
    with decoding_in_threads():
        first = run_ingest(
            root / "run1",
            [{"name": "a", "path": str(root / "one")}, {"name": "b", "path": str(root / "two")}],
            workers=1,
        )
    assert len(first) == len(set(first)) <= len(names)
    with decoding_in_threads(block) as patch:
        patch.setattr(os, "scandir", shuffled_scandir(os.scandir, order))
        second = run_ingest(
            root / "run2",
            [{"name": "b", "path": str(root / "one")}, {"name": "a", "path": str(root / "two")}],
            workers=workers,
        )
    assert hash_files(root / "run2") == hash_files(root / "run1") and second == first

    if len(stems) == len(names):  # two members of one key would share a caption
        write_tars(root / "tars", names, cuts)
        with decoding_in_threads(block):
            kept = run_ingest(root / "run3", [{"name": "t", "path": str(root / "tars" / "*.tar")}], workers=workers)
        assert kept == first
    with decoding_in_threads(block), serving(root / "one") as url:
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
            kept = run_ingest(root / name, [source], workers=workers)
            if name == "run4":
                assert kept == first
            elif all(len({sample_files()[n] for n in names if n in group}) < 2 for group in NEAR):
                assert sorted(kept) == sorted(first)
    shutil.rmtree(root)


def test_processes_decode_as_threads_do(tmp_path: Path):
    write_folder(tmp_path / "files", sorted(sample_files()), sorted(sample_files()))
    source = [{"name": "a", "path": str(tmp_path / "files")}]
    by_processes = run_ingest(tmp_path / "run1", source, workers=2)
    with decoding_in_threads():
        assert run_ingest(tmp_path / "run2", source, workers=4) == by_processes
    assert hash_files(tmp_path / "run1") == hash_files(tmp_path / "run2")
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
        "animated.gif": "unsupported_format",
        "clear.webp": "near_duplicate",
    }
    assert dropped == expected
