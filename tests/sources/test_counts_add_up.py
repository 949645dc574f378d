"""In every report: files = kept + dropped, captions = matched + unmatched, lines = rows + unread, for any sources.

Hypothesis draws the sources and says beforehand what each holds: images, damaged files, captions with and without a
file, rows that are broken, repeated or without an image.
"""

import csv
import io
import json
import tempfile
from collections import Counter
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.ingest import inspect
from tasks.ingest import stage as ingest
from tasks.ingest.normalize import normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection
from tasks.store import Store
from tests.support.images import block_image, encode
from tests.support.ingest import ingest_params
from tests.support.tars import make_tar

FORMS = ("folder", "tar", "csv", "tsv", "jsonl", "parquet")
# image: with a caption; bare: without one; damaged: no decoder reads it; litter: an operating system's;
# orphan: a caption without a file; empty: a row without image or address; broken: a line that cannot be read
KINDS = ("image", "bare", "damaged", "litter", "orphan", "empty", "broken")
USED = {
    "folder": {"image", "bare", "damaged", "litter", "orphan"},
    "tar": {"image", "bare", "damaged", "litter", "orphan"},
    "csv": {"image", "bare", "empty"},
    "tsv": {"image", "bare", "empty"},
    "jsonl": {"image", "bare", "empty", "broken"},
    "parquet": {"image", "bare", "damaged", "empty"},
}


class InThread:
    """Stands where ImageWorkers stands: decodes in the calling thread."""

    def __init__(self, rules: NormalizationRules) -> None:
        self.read = partial(self._read, rules)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @staticmethod
    def _read(rules: NormalizationRules, content: bytes, *, is_named_image: bool) -> NormalizedImage | Rejection:
        return normalize_image(content, is_named_image=is_named_image, rules=rules)


@cache
def picture(number: int) -> bytes:
    return encode(block_image(number % 12), "PNG")


def content_of(kind: str, number: int) -> bytes:
    return b"\x89PNG\r\n\x1a\ndamaged" if kind == "damaged" else picture(number)


def write_folder(path: Path, kinds: list[str]) -> Counter[str]:
    """Captions in a table and, of every third, in a text beside the image, which repeats the table's."""
    path.mkdir()
    rows, truth = [], Counter[str]()
    for n, kind in enumerate(kinds):
        name = f"._{n}.png" if kind == "litter" else f"{n}.png"
        if kind != "orphan":
            (path / name).write_bytes(content_of(kind, n))
            truth["files"] += 1
        if kind in ("image", "orphan"):
            rows.append((name, f"thing {n}"))
            truth["matched" if kind == "image" else "unmatched"] += 1
        if kind == "image" and n % 3 == 0:
            (path / f"{n}.txt").write_text(f"the same thing {n}")
    if rows:
        with open(path / "captions.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "caption"), *rows])
    return truth + Counter(lines=len(rows))


def write_tar(path: Path, kinds: list[str]) -> Counter[str]:
    members, truth = [], Counter[str]()
    for n, kind in enumerate(kinds):
        if kind != "orphan":
            members.append((f"__MACOSX/{n}.png" if kind == "litter" else f"{n}.png", content_of(kind, n)))
            truth["files"] += 1
        if kind in ("image", "orphan"):
            members.append((f"{n}.json", json.dumps({"caption": f"thing {n}"}).encode()))
            truth["matched" if kind == "image" else "unmatched"] += 1
    path.write_bytes(make_tar(members))
    return truth


def write_table(path: Path, kinds: list[str]) -> Counter[str]:
    """Addresses of this machine, which are refused without a request; every fourth stands twice."""
    rows, truth = [], Counter[str]()
    for n, kind in enumerate(kinds):
        truth["lines"] += 1
        if kind == "broken":
            rows.append(None)
            truth["files"] += 1
            continue
        caption = None if kind == "bare" else f"thing {n}"
        rows.append({"url": "" if kind == "empty" else f"http://127.0.0.1/{n}.png", "caption": caption})
        truth["files"] += 1
        if caption:
            truth["unmatched" if kind == "empty" else "matched"] += 1
        if kind == "image" and n % 4 == 0:
            rows.append(dict(rows[-1]))  # its address was listed before
            truth += Counter(lines=1, unmatched=1)
    if path.suffix == ".jsonl":
        path.write_text("".join('{"url": \n' if row is None else json.dumps(row) + "\n" for row in rows))
    else:
        out = io.StringIO()
        lines = csv.writer(out, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
        lines.writerows([("url", "caption"), *((row["url"], row["caption"] or "") for row in rows if row)])
        path.write_text(out.getvalue())
    return truth


def write_parquet(path: Path, kinds: list[str]) -> Counter[str]:
    truth = Counter(lines=len(kinds), files=len(kinds))
    images = [None if kind == "empty" else {"bytes": content_of(kind, n), "path": None} for n, kind in enumerate(kinds)]
    captions = [f"thing {n}" if kind in ("image", "empty") else None for n, kind in enumerate(kinds)]
    truth += Counter(matched=kinds.count("image"), unmatched=kinds.count("empty"))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(images, kind), "text": pa.array(captions, pa.string())}
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return truth


WRITERS = {"folder": write_folder, "tar": write_tar, "parquet": write_parquet}
SOURCE = st.tuples(st.sampled_from(FORMS), st.lists(st.sampled_from(KINDS), max_size=7))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(sources=st.lists(SOURCE, min_size=1, max_size=4))
def check_reports(sources: list[tuple[str, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, truth, settings_ = Path(name), Counter[str](), []
        for n, (form, drawn) in enumerate(sources):
            kinds = ["image", *(kind for kind in drawn if kind in USED[form])]
            path = root / f"{n}" if form == "folder" else root / f"{n}.{form}"
            truth += WRITERS.get(form, write_table)(path, kinds)
            settings_.append({"name": f"s{n}", "path": str(path), "contact": "me@example.org"})
        store = Store(root / "run")
        params = ingest_params(settings_, hash_distance_bits=0, thumbnail_distance=0.0, workers=1)
        report = ingest.run(params, store)
        figures = Counter({name: int(value) for name, value in report.figures.items()})
        rows = store.read_table("images").num_rows + store.read_dropped("ingest").num_rows
        assert report.read == report.written + sum(report.dropped.values()) == rows == truth["files"]
        assert figures["captions_read"] == figures["captions_matched"] + figures["captions_unmatched"]
        assert (figures["captions_matched"], figures["captions_unmatched"]) == (truth["matched"], truth["unmatched"])
        assert figures["table_lines"] == figures["table_rows"] + figures["unread_rows"] == truth["lines"]


def test_in_every_report_the_counts_add_up_to_what_the_sources_hold(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ingest, "make_workers", lambda config: InThread(inspect.normalization_rules(config)))
    check_reports()
