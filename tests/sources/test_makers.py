"""What each known maker publishes, in each awkward form: rows, captions and licences come out the same."""

import codecs
import gzip
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import SourceConfig
from tasks.sources.counts import ListingCounts
from tasks.sources.open import list_files
from tests.support.tars import make_tar

# What every maker states: three images; the second has no caption, the third a licence of its own.
CAPTIONS = ["a café, at night", None, "two &amp; more"]
EXPECTED = [("a café, at night", "CC0-1.0"), (None, "CC0-1.0"), ("two & more", "CC-BY-4.0")]
NO_LICENCE = [(caption, "CC0-1.0") for caption, _ in EXPECTED]
LICENCES = ["?", None, "CC BY 4.0"]
URLS = [f"http://example.org/caf%C3%A9/{n}.jpg" for n in range(3)]
Case = tuple[dict[str, bytes], dict[str, Any], list[tuple[str | None, str]]]


def as_parquet(**columns: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=2)
    return out.getvalue()


def as_csv(names: list[str], rows: list[list[str | None]], separator: str = ",") -> bytes:
    def quote(text: str | None) -> str:
        is_special = separator == "," and text and any(c in text for c in ',"\n')
        return '"{}"'.format(text.replace('"', '""')) if is_special and text else text or ""

    return "".join(separator.join(map(quote, row)) + "\n" for row in [names, *rows]).encode()


def with_captions(texts: list[str | None]) -> list[str]:
    return [text or "" for text in texts]


def img2dataset_tars() -> Case:
    members: list[tuple[str, bytes]] = []
    for n, (caption, licence) in enumerate(zip(CAPTIONS, LICENCES, strict=True)):
        row = {"caption": caption, "url": URLS[n], "key": f"{n:09d}", "status": "success", "license": licence}
        members += [(f"{n:09d}.jpg", b"image"), (f"{n:09d}.json", json.dumps(row).encode())]
        members += [(f"{n:09d}.txt", (caption or "").encode())]
    stats = {"00000_stats.json": b"{}", "00000.parquet": as_parquet(url=URLS, caption=CAPTIONS)}
    return {"00000.tar": make_tar(members), **stats}, {"path": "*.tar"}, EXPECTED


def img2dataset_files() -> Case:
    files: dict[str, bytes] = {"00000.parquet": b"PAR1", "00000_stats.json": b"{}"}
    for n, (caption, licence) in enumerate(zip(CAPTIONS, LICENCES, strict=True)):
        files[f"00000/{n:09d}.jpg"] = b"image"
        files[f"00000/{n:09d}.json"] = json.dumps({"caption": caption, "license": licence}).encode()
    return files, {"path": "*/*.jpg", "kind": "folder"}, EXPECTED


def datacomp() -> Case:
    table = as_parquet(uid=["a", "b", "c"], url=URLS, text=CAPTIONS, original_width=[1, 2, 3], sha256=["0" * 64] * 3)
    return {"metadata/0.parquet": table}, {"path": "metadata/*.parquet"}, NO_LICENCE


def cc3m() -> Case:
    rows = [[caption, url] for caption, url in zip(CAPTIONS, URLS, strict=True)]
    content = as_csv([], rows, "\t").lstrip(b"\n")
    return {"Train_GCC-training.tsv": content}, {"path": "*.tsv", "columns": {"caption": 0, "url": 1}}, NO_LICENCE


def cc12m() -> Case:
    rows = [[url, caption] for caption, url in zip(CAPTIONS, URLS, strict=True)]
    content = as_csv([], rows, "\t").lstrip(b"\n")
    return {"cc12m.tsv": content}, {"path": "cc12m.tsv", "columns": {"url": "0", "caption": "1"}}, NO_LICENCE


def laion() -> Case:
    table = as_parquet(SAMPLE_ID=[1.0, 2.0, 3.0], URL=URLS, TEXT=CAPTIONS, LICENSE=LICENCES, NSFW=["UNLIKELY"] * 3)
    return {"part-00000.snappy.parquet": table}, {"path": "*.parquet"}, EXPECTED


def hugging_face_parquet() -> Case:
    images = [{"bytes": b"image %d" % n, "path": f"{n}.jpg"} for n in range(3)]
    captions = pa.array([[c] if c else None for c in CAPTIONS], pa.list_(pa.string()))
    table = as_parquet(image=images, caption=captions, license=LICENCES)
    return {"data/train-00000-of-00001.parquet": table}, {"path": "data", "kind": "table"}, EXPECTED


def hugging_face_imagefolder() -> Case:
    files = {f"train/{n}.jpg": b"image" for n in range(3)}
    lines = [
        json.dumps({"file_name": f"{n}.jpg", "text": c, "license": licence}, ensure_ascii=False)
        for n, (c, licence) in enumerate(zip(CAPTIONS, LICENCES, strict=True))
    ]
    return {**files, "train/metadata.jsonl": "\n".join(lines).encode()}, {"path": "."}, EXPECTED


def webdataset() -> Case:
    members: list[tuple[str, bytes]] = []
    for n, (caption, licence) in enumerate(zip(CAPTIONS, LICENCES, strict=True)):
        row = json.dumps({"text": caption, "license": licence}).encode()
        members += [(f"n01/x_{n}.cls", b"7"), (f"n01/x_{n}.jpg", b"image"), (f"n01/x_{n}.json", row)]
    shards = {"shard-000000.tar": make_tar(members[:3]), "shard-000001.tar": make_tar(members[3:])}
    return shards, {"path": "shard-{000000..000009}.tar"}, EXPECTED


def kaggle() -> Case:
    """Flickr8k: Images/ and captions.txt, a CSV."""
    files = {f"Images/{n}_ab.jpg": b"image" for n in range(3)}
    rows = [[f"{n}_ab.jpg", caption] for n, caption in enumerate(CAPTIONS)]
    return {**files, "captions.txt": as_csv(["image", "caption"], rows)}, {"path": "."}, NO_LICENCE


def kaggle_ids() -> Case:
    """A table of ids, named by `columns`."""
    files = {f"images/{n}.jpg": b"image" for n in (1163, 1164, 1165)}
    rows = [[str(1163 + n), "x", caption] for n, caption in enumerate(CAPTIONS)]
    table = as_csv(["id", "gender", "productDisplayName"], rows)
    columns = {"path": "id", "caption": "productDisplayName"}
    return {**files, "styles.csv": table}, {"path": ".", "columns": columns}, NO_LICENCE


def macos_zip() -> Case:
    """A zip of a Mac, unpacked: names in NFD, litter, a CSV of Excel."""
    folder = unicodedata.normalize("NFD", "Fotos für café")
    files = {f"{folder}/{n}.jpg": b"image" for n in range(3)}
    litter = {f"__MACOSX/{folder}/._{n}.jpg": b"\0\5\x16\7" for n in range(3)}
    rows = [
        [f"/Users/me/Fotos für café/{n}.jpg", c, li or "nan"]
        for n, (c, li) in enumerate(zip(CAPTIONS, LICENCES, strict=True))
    ]
    table = codecs.BOM_UTF8 + as_csv(["Path ", " Caption", "License"], rows).replace(b"\n", b"\r\n")
    return {**files, **litter, f"{folder}/.DS_Store": b"\0", "captions.csv": table}, {"path": "."}, EXPECTED


MAKERS: list[Callable[[], Case]] = [
    img2dataset_tars,
    img2dataset_files,
    datacomp,
    cc3m,
    cc12m,
    laion,
    hugging_face_parquet,
    hugging_face_imagefolder,
    webdataset,
    kaggle,
    kaggle_ids,
    macos_zip,
]
TEXTS = (".csv", ".tsv", ".jsonl", "captions.txt")


def untouched(name: str, content: bytes) -> tuple[str, bytes]:
    return name, content


def utf16(name: str, content: bytes) -> tuple[str, bytes]:
    is_text = name.endswith(TEXTS)
    return name, content.decode("utf-8-sig").encode("utf-16") if is_text else content


def windows(name: str, content: bytes) -> tuple[str, bytes]:
    is_text = name.endswith(TEXTS) and b"\r" not in content
    return name, codecs.BOM_UTF8 + content.replace(b"\n", b"\r\n") if is_text else content


def damaged_end(name: str, content: bytes) -> tuple[str, bytes]:
    """A last row that is cut within a character."""
    if name.endswith(TEXTS):
        return name, content.rstrip() + b'\n{"file_name": "caf\xc3'
    return (name, content[:-1024]) if name.endswith(".tar") else (name, content)


def packed(name: str, content: bytes) -> tuple[str, bytes]:
    is_table = name.endswith((".csv", ".tsv", ".jsonl")) and "captions" not in name and "metadata" not in name
    return (f"{name}.gz", gzip.compress(content)) if is_table else (name, content)


@pytest.mark.parametrize("awkward", [untouched, utf16, windows, damaged_end, packed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda f: f.__name__)
def test_every_maker_in_every_form(maker: Any, awkward: Any, tmp_path: Path):
    files, settings, expected = maker()
    for name, content in files.items():
        new_name, new_content = awkward(name, content)
        (tmp_path / new_name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / new_name).write_bytes(new_content)
    path = settings.pop("path")
    if awkward is packed and path.endswith((".tsv", ".csv")):
        path += ".gz"
    source = SourceConfig(
        name="m", path=str(tmp_path / path), license_code="CC0-1.0", contact="me@example.org", **settings
    )
    counts, listed = ListingCounts(), []
    for file in list_files(source, counts=counts):
        is_other = file.uri.endswith((".cls", ".json", ".parquet", "styles.csv.gz"))
        if not file.is_rejected and not is_other:
            listed.append((file.metadata.caption, file.license_code))
    assert listed == expected
    assert (counts.matched, counts.unmatched) == (2, 0), counts.examples
