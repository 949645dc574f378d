"""From a caption to its image, in a folder and in a bucket: whatever way a path is written; each caption is counted."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.ingest import stage as ingest
from tasks.sources.counts import ListingCounts
from tasks.sources.files import FileRejected
from tasks.sources.matching import normal_path
from tasks.sources.open import list_files
from tasks.store import Store
from tasks.validate.figures import read_reports, run_figures
from tests.support.images import block_image, encode
from tests.support.ingest import folder_params, read_drop_reasons, read_kept

Listed = tuple[dict[str, str | None], dict[str, str], ListingCounts]


def listed(path: str, **more: Any) -> Listed:
    """(file -> caption, place of a rejection -> reason and why, counts)."""
    good: dict[str, str | None] = {}
    bad, counts = {}, ListingCounts()
    for file in list_files(SourceConfig(name="s", path=path, **more), counts=counts):
        inside = file.uri.partition(":")[2]
        if file.is_rejected:
            with pytest.raises(FileRejected) as caught:
                file.read(1 << 20)
            bad[inside] = str(caught.value)
        else:
            good[inside] = file.metadata.caption
    assert counts.captions == counts.matched + counts.unmatched
    assert counts.files_without_caption == sum(caption is None for caption in good.values())
    return good, bad, counts


def write(folder: Path, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture(params=["folder", "bucket"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes | str]], Callable[..., Listed]]:
    """Puts files into a folder or a bucket; returns what lists them."""

    def put_files(files: dict[str, bytes | str]) -> Callable[..., Listed]:
        if request.param == "folder":
            write(tmp_path / "in", files)
            return lambda **more: listed(str(tmp_path / "in"), **more)
        s3, url = request.getfixturevalue("s3"), request.getfixturevalue("s3_url")
        for name, content in files.items():
            s3.put_object(Bucket="images", Key=f"in/{name}", Body=content)
        return lambda **more: listed("s3://images/in", endpoint_url=url, **more)

    return put_files


NFD = unicodedata.normalize("NFD", "café")
IMAGES: dict[str, bytes | str] = {
    f"{NFD}.jpg": b"1",
    "b.jpg": b"2",
    "sub/c d.jpg": b"3",
    "sub/deep/E.JPG": b"4",
    "x/same.jpg": b"5",
    "y/same.jpg": b"6",
    "1163.png": b"7",
}


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("café.jpg", f"{NFD}.jpg"),
        ("/b.jpg", "b.jpg"),
        ("./b.jpg ", "b.jpg"),
        ("sub\\c d.jpg", "sub/c d.jpg"),
        ("sub/c%20d.jpg", "sub/c d.jpg"),
        ("./sub//deep/../c d.jpg", "sub/c d.jpg"),
        ("SUB/deep/e.jpg", "sub/deep/E.JPG"),
        ("/home/me/data/sub/deep/E.JPG", "sub/deep/E.JPG"),
        ("C:\\data\\sub\\deep\\E.JPG", "sub/deep/E.JPG"),
        ("https://example.org/data/sub/c%20d.jpg", "sub/c d.jpg"),
        ("file:///data/y/same.jpg", "y/same.jpg"),
        ("E.JPG", "sub/deep/E.JPG"),
        ("deep/e.jpg", "sub/deep/E.JPG"),
        ("1163", "1163.png"),
        ("same.jpg", None),  # two files have this name
        ("z/same.jpg", None),
        ("gone.jpg", None),
        ("b.png", None),
        ("", None),
    ],
)
def test_a_path_is_found_whatever_way_it_is_written(tmp_path: Path, path: str, file: str | None):
    """Beside it stands a caption that matches, so that none at all is no error."""
    certain = "x/same.jpg" if file != "x/same.jpg" else "b.jpg"
    table = json.dumps({"path": path, "caption": "it"}) + "\n" + json.dumps({"path": certain, "caption": "other"})
    write(tmp_path, {**IMAGES, "captions.jsonl": table})
    good, bad, counts = listed(str(tmp_path))
    expected = dict.fromkeys(IMAGES) | {certain: "other"} | ({file: "it"} if file else {})
    assert (good, bad) == (expected, {})
    assert (counts.matched, counts.unmatched) == ((2, 0) if file else (1, 1))
    if not file:
        assert counts.examples[0].startswith("captions.jsonl#1") and normal_path(path)[:5] in counts.examples[0]


def test_tables_of_captions_and_texts_beside_images(put: Any):
    """Hugging Face's imagefolder in folders, an own table, and x.txt, x.json and x.caption beside x.jpg."""
    run = put(
        {
            "captions.csv": "path, caption\na.jpg,of table\n",
            "a.jpg": b"1",
            "a.txt": "of text",
            "train/metadata.csv": "file_name,text\nb.jpg,of metadata\nsub/c.jpg,of a folder below\n",
            "train/b.jpg": b"2",
            "train/sub/c.jpg": b"3",
            "b.jpg": b"4",
            "val/metadata.jsonl": '{"file_name": "d.jpg", "caption": "of lines"}\n{"file_na\n',
            "val/d.jpg": b"5",
            "e.v1.jpg": b"6",
            "e.v1.txt": "six &amp; more",
            "e.v2.jpg": b"7",
            "e.v2.json": '{"caption": "seven", "license": "cc by 4.0"}',
            "f.jpg": b"8",
            "f.caption": b"\xef\xbb\xbfeight",
            "README.txt": "about all",
        }
    )
    good, bad, counts = run()
    assert good == {
        "README.txt": None,
        "a.jpg": "of table",
        "b.jpg": None,
        "e.v1.jpg": "six & more",
        "e.v2.jpg": "seven",
        "f.jpg": "eight",
        "train/b.jpg": "of metadata",
        "train/sub/c.jpg": "of a folder below",
        "val/d.jpg": "of lines",
    }
    assert list(bad) == ["val/metadata.jsonl#2"] and "no JSON" in bad["val/metadata.jsonl#2"]
    assert (counts.unmatched, counts.damaged_rows) == (0, 1)


def test_captions_of_which_none_matches_are_an_error(put: Any):
    rows = "".join(f"images/{n}.jpg,a thing\n" for n in range(1_000))
    run = put({"captions.csv": f"path,caption\n{rows}", "0_0.jpg": b"1", "1_1.jpg": b"2"})
    with pytest.raises(
        DataError, match=r"0 of 1,000 captions match a file: .*'images/0.jpg'.*files \['0_0.jpg', '1_1.jpg'\]"
    ):
        run()


def test_a_second_caption_and_one_of_two_paths_are_counted(tmp_path: Path):
    table = "image,caption\na.jpg,first\na.jpg,second\ntrain/b.jpg,x\nval/b.jpg,y\n"
    write(tmp_path, {"captions.csv": table, "images/a.jpg": b"1", "b.jpg": b"2"})
    good, _, counts = listed(str(tmp_path))
    assert good == {"b.jpg": None, "images/a.jpg": "first"} and (counts.matched, counts.unmatched) == (1, 3)
    assert sorted(counts.examples) == [
        "captions.csv#3 (a second caption of the same file)",
        "captions.csv#4 (several paths fit one file)",
        "captions.csv#5 (several paths fit one file)",
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["captions", "metadata"])
def test_every_form_of_a_table_of_captions(tmp_path: Path, name: str, suffix: str):
    write(tmp_path, {"a.jpg": b"1", "b.jpg": b"2"})
    path = tmp_path / f"{name}.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"file_name": ["b.jpg"], "text": [["of two", "texts"]]}), path)
    elif suffix == "jsonl":
        path.write_text(json.dumps({"file_name": "b.jpg", "text": "of two"}))
    else:
        path.write_text("file_name,text\nb.jpg,of two\n".replace(",", "," if suffix == "csv" else "\t"))
    assert listed(str(tmp_path))[0] == {"a.jpg": None, "b.jpg": "of two"}


def test_of_two_forms_of_one_table_one_is_read(tmp_path: Path):
    pq.write_table(pa.table({"path": ["a.jpg"], "caption": ["of Parquet"]}), tmp_path / "captions.parquet")
    write(
        tmp_path,
        {"a.jpg": b"1", "captions.csv": "path,caption\na.jpg,of CSV\n", "metadata.csv": "path,license\na.jpg,MIT\n"},
    )
    good, _, counts = listed(str(tmp_path))
    assert good == {"a.jpg": "of Parquet"} and counts.unmatched == 0
    assert counts.notes == ["captions.csv is not read, because captions.parquet lies beside it"]


def test_a_damaged_row_has_a_uri_of_its_own(tmp_path: Path):
    write(tmp_path, {"captions.csv": b"path,caption\na.jpg,x\nb.jpg,\xff\n", "a.jpg": b"1", "captions.csv#3": b"2"})
    uris = [file.uri for file in list_files(SourceConfig(name="s", path=str(tmp_path)))]
    assert sorted(uris) == ["s:a.jpg", "s:captions.csv#3", "s:captions.csv#3#"]


def test_a_metadata_table_of_other_columns_is_told_and_stops_nothing(tmp_path: Path):
    write(tmp_path, {"a.jpg": b"1", "metadata.csv": "key,value\nx,1\n"})
    good, _, counts = listed(str(tmp_path))
    assert good == {"a.jpg": None, "metadata.csv": None} and "metadata.csv is not read as a table" in counts.notes[0]


def test_what_operating_systems_leave_is_no_image(put: Any):
    litter = ["._a.jpg", "sub/._b.jpg", "__MACOSX/sub/._b.jpg", ".DS_Store", "Thumbs.db", "sub/desktop.ini", "._a.txt"]
    run = put(
        {
            **dict.fromkeys(litter, b"\0\5\x16\7" * 20),
            "a.jpg": b"1",
            "sub/b.jpg": b"2",
            "captions.csv": "path,caption\na.jpg,x\n",
        }
    )
    good, bad, counts = run()
    assert good == {"a.jpg": "x", "sub/b.jpg": None}
    assert set(bad) == set(litter) and all(why.startswith("not_a_picture") for why in bad.values())


def test_litter_is_part_of_no_share(tmp_path: Path):
    image = encode(block_image(0))
    litter: dict[str, bytes | str] = {f"._{n}.png": b"\0\5\x16\7" * 20 for n in range(6)}
    write(
        tmp_path / "in", {**litter, "0.png": image, "1.png": image, "2.png": b"broken", "3.png": encode(block_image(1))}
    )
    store = Store(tmp_path / "run")
    report = ingest.run(folder_params(tmp_path / "in"), store)
    assert (report.read, report.dropped["not_a_picture"]) == (10, 6)
    assert (report.figures["duplicate_share"], report.figures["unreadable_share"]) == (0.25, 0.25)
    figures = run_figures("images", [{"caption": "x"}] * 2, read_reports(store, "images", "2026.01.04"))
    assert (figures["duplicate_share"], figures["unreadable_share"]) == (0.25, 0.25)


def test_the_report_says_what_became_of_captions(tmp_path: Path):
    images: dict[str, bytes | str] = {f"{n}.png": encode(block_image(n)) for n in range(4)}
    table = "path,caption\n0.png,a\n1.png,b\n" + "".join(f"gone{n}.png,c\n" for n in range(5))
    write(tmp_path / "in", {**images, "captions.csv": table, "._0.png": b"litter"})
    store = Store(tmp_path / "run")
    report = ingest.run(folder_params(tmp_path / "in"), store)
    assert {k: v for k, v in report.figures.items() if k.startswith(("captions_", "files_"))} == {
        "captions_read": 7,
        "captions_matched": 2,
        "captions_unmatched": 5,
        "files_without_caption": 2,
    }
    (note,) = [note for note in report.notes if note.startswith("captions of the sources")]
    assert "7 read, 2 matched a file, 5 matched none (captions.csv#4 'gone0.png' (no such file); " in note
    assert note.count("no such file") == 3 and note.endswith("; files without a caption: 2")
    assert read_drop_reasons(store) == {"._0.png": "not_a_picture"}
    assert {name: row["caption_source"] for name, row in read_kept(store).items()} == {
        "0.png": "source",
        "1.png": "source",
        "2.png": None,
        "3.png": None,
    }
    assert ingest.build_report(store, "2026.01.04").notes == report.notes  # from the disk alone
