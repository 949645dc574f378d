"""One bad row never loses a table: each form of damage is a row that says why, and every good row is read."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import SourceConfig
from tasks.errors import ConfigError, DataError
from tasks.ingest import stage as ingest
from tasks.sources.counts import ListingCounts
from tasks.sources.files import FileRejected
from tasks.sources.open import list_files
from tasks.store import Store
from tests.support.images import block_image, encode
from tests.support.ingest import ingest_params, read_kept

URL = "http://example.org/{}.jpg"


def source(path: Path, **more: Any) -> SourceConfig:
    return SourceConfig(name="web", path=str(path), contact="me@example.org", **more)


def listed(path: Path, **more: Any) -> tuple[list[tuple[str, str | None]], dict[str, str], ListingCounts]:
    """(URL and caption of good rows, place -> why of bad ones, counts)."""
    counts, good, bad = ListingCounts(), [], {}
    for file in list_files(source(path, **more), counts=counts):
        inside = file.uri.partition(":")[2]
        if file.is_rejected:
            with pytest.raises(FileRejected) as caught:
                file.read(10)
            bad[inside] = caught.value.detail
        else:
            good.append((inside, file.metadata.caption))
    captions = sum(caption is not None for _, caption in good)
    assert counts.matched == captions and counts.captions == counts.matched + counts.unmatched
    tables = sum("column 'url' is missing" in why for why in bad.values())
    assert counts.rows == len(good) + len(bad) - tables + counts.repeated_rows
    return good, bad, counts


def rows(*numbers_and_captions: tuple[int, str | None]) -> list[tuple[str, str | None]]:
    return [(URL.format(n), caption) for n, caption in numbers_and_captions]


def test_a_tsv_has_no_quoting(tmp_path: Path):
    captions = ['"hello', "two", "three", 'four 15" x', "five"]
    lines = [f"{URL.format(n)}\t{caption}\n" for n, caption in enumerate(captions)]
    (tmp_path / "t.tsv").write_text("url\tcaption\n" + "".join(lines))
    assert listed(tmp_path / "t.tsv")[0] == rows(*enumerate(captions))


@pytest.mark.parametrize(
    "captions",
    [
        ['"hello', "two", "three", 'four 15" x', "five"],
        ["one", '"never closed', "three"],
        ['"', "two", '"', "four"],
        ['"open', '"proper, quoted"', '"open again', "four"],
    ],
)
def test_a_quote_in_a_csv_swallows_no_row_and_is_told(tmp_path: Path, captions: list[str]):
    lines = [f"{URL.format(n)},{caption}\n" for n, caption in enumerate(captions)]
    (tmp_path / "t.csv").write_text("url,caption\n" + "".join(lines))
    good, bad, counts = listed(tmp_path / "t.csv")
    assert [url for url, _ in good] == [URL.format(n) for n in range(len(captions))] and not bad
    assert not any("http" in (caption or "") for _, caption in good)
    assert "opens a quote" in counts.notes[0] and counts.rows == len(captions)


def test_a_quote_that_no_line_closes_swallows_nothing_of_a_long_table(tmp_path: Path):
    lines = [f"{URL.format(n)},{chr(34) if n == 3 else ''}caption {n}\n" for n in range(3_000)]
    (tmp_path / "t.csv").write_text("url,caption\n" + "".join(lines))
    assert len(listed(tmp_path / "t.csv")[0]) == 3_000


def test_a_text_of_several_lines_is_one_row(tmp_path: Path):
    (tmp_path / "t.csv").write_text(
        f'url,caption\r\n{URL.format(0)},"first\r\nsecond ""line"", with a comma\r\n\r\nlast"\r\n{URL.format(1)},b\r\n'
    )
    good, bad, counts = listed(tmp_path / "t.csv")
    assert good == rows((0, 'first second "line", with a comma last'), (1, "b")) and not bad
    assert counts.notes == ["t.csv: 1 of its rows have a text of several lines, 4 lines in all"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_bytes_of_another_encoding_are_one_row_with_its_line(tmp_path: Path, suffix: str):
    separator = {"csv": ",", "tsv": "\t"}.get(suffix)

    def line(n: int, caption: str) -> str:
        return (
            f"{URL.format(n)}{separator}{caption}\n"
            if separator
            else json.dumps({"url": URL.format(n), "caption": caption}, ensure_ascii=False) + "\n"
        )

    path = tmp_path / f"t.{suffix}"
    head = f"url{separator}caption\n".encode() if separator else b""
    path.write_bytes(head + line(0, "a").encode() + line(1, "café").encode("cp1252") + line(2, "crème").encode())
    good, bad, _ = listed(path)
    number = 3 if separator else 2
    assert good == rows((0, "a"), (2, "crème")) and list(bad) == [f"t.{suffix}#{number}"]
    assert "after '" in bad[f"t.{suffix}#{number}"] and "cp1252" in bad[f"t.{suffix}#{number}"]
    path.write_bytes(head + line(1, "café").encode("cp1252"))
    assert listed(path, encoding="cp1252")[0] == rows((1, "café"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "csv.gz"])
def test_encodings_that_show_are_read(tmp_path: Path, encoding: str, suffix: str):
    separator = "\t" if suffix == "tsv" else ","
    text = f"url{separator}caption\r\n{URL.format(0)}{separator}crème \u4e2d\r\n{URL.format(1)}{separator}b\r\n"
    if suffix == "jsonl":
        text = "".join(
            json.dumps({"url": u, "caption": c}, ensure_ascii=False) + "\n"
            for u, c in rows((0, "crème \u4e2d"), (1, "b"))
        )
    content = text.encode(encoding)
    (tmp_path / f"t.{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert listed(tmp_path / f"t.{suffix}")[0] == rows((0, "crème \u4e2d"), (1, "b"))


def test_an_encoding_that_python_does_not_know_is_refused():
    with pytest.raises(ValueError, match="no encoding that Python knows"):
        source(Path("t.csv"), encoding="klingon")


def test_json_lines_are_read_one_by_one(tmp_path: Path):
    lines = [
        json.dumps({"url": URL.format(0)}),
        json.dumps({"url": URL.format(1), "caption": "has one"}),
        '{"url": "http://example.org/x.jpg", "capt',
        "",
        "[1, 2]",
        "null",
        json.dumps({"link": "", "url": URL.format(2), "text": "also"}),
        '{"url": "http://example.org/cut.jpg", "captio',
    ]
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    good, bad, _ = listed(tmp_path / "t.jsonl.gz")
    assert good == rows((0, None), (1, "has one"), (2, "also"))
    assert list(bad) == [f"t.jsonl.gz#{n}" for n in (3, 5, 6, 8)] and "expected one JSON object" in bad["t.jsonl.gz#5"]


def test_a_csv_row_with_too_many_fields_is_not_cut_silently(tmp_path: Path):
    (tmp_path / "t.csv").write_text(f"url,caption\n{URL.format(0)},a red, round thing\n{URL.format(1)},b,,\n")
    assert listed(tmp_path / "t.csv")[0] == rows((0, "a red, round thing"), (1, "b"))
    (tmp_path / "u.csv").write_text(f"caption,url\na red, round thing,{URL.format(0)}\nb,{URL.format(1)}\n")
    good, bad, _ = listed(tmp_path / "u.csv")
    assert good == rows((1, "b")) and "3 fields" in bad["u.csv#2"]


def test_a_damaged_row_group_costs_its_rows_only(tmp_path: Path):
    path = tmp_path / "t.parquet"
    table = pa.table({"url": [URL.format(n) for n in range(40)], "caption": [f"caption {n}" for n in range(40)]})
    pq.write_table(table, path, row_group_size=10, compression="zstd", write_page_checksum=True)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start + 60 : start + 80] = b"\xff" * 20
    path.write_bytes(bytes(content))
    good, bad, counts = listed(path)
    assert good == rows(*((n, f"caption {n}") for n in range(40) if not 10 <= n < 20))
    assert (counts.lines, counts.rows, counts.unread_rows) == (40, 31, 9), "its other nine rows are counted"
    assert list(bad) == ["t.parquet#10"] and bad["t.parquet#10"].startswith("rows 10 to 19 of row group 1")
    path.write_bytes(path.read_bytes()[:-40])
    good, bad, _ = listed(path)
    assert not good and "the Parquet file cannot be read" in bad["t.parquet#0"]


def test_a_text_in_parquet_that_is_no_utf8_is_one_row(tmp_path: Path):
    captions = pa.array([b"a", b"caf\xe9", b"c"], pa.binary()).view(pa.string())
    urls = pa.array([URL.format(n) for n in range(3)])
    pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "t.parquet")
    good, bad, _ = listed(tmp_path / "t.parquet")
    assert good == rows((0, "a"), (2, "c")) and "no UTF-8" in bad["t.parquet#1"]


def test_a_table_without_its_columns_stops_only_a_source_that_has_no_other(tmp_path: Path):
    (tmp_path / "a.csv").write_text("title,price\nx,1\n")
    (tmp_path / "b.csv").write_text(f"url,caption\n{URL.format(0)},a\n")
    good, bad, _ = listed(tmp_path, kind="table")
    assert good == rows((0, "a")) and "column 'url' is missing" in bad["a.csv"]
    (tmp_path / "b.csv").unlink()
    with pytest.raises(DataError, match="column 'url' is missing"):
        listed(tmp_path, kind="table")
    (tmp_path / "a.csv").write_bytes(b"")
    assert listed(tmp_path, kind="table")[1] == {"a.csv#1": "the table has no header and no row"}


# --- columns ----------------------------------------------------------------------------------------------------------


def test_a_table_without_a_header_is_read_by_position(tmp_path: Path):
    path = tmp_path / "Train_GCC-training.tsv"
    path.write_text(f'a "very" typical bus station\t{URL.format(0)}\nsierra\t{URL.format(1)}\n')
    with pytest.raises(DataError, match=r'without a header.* columns: \{"url": 1, "caption": 0\}'):
        listed(path)
    expected = rows((0, 'a "very" typical bus station'), (1, "sierra"))
    for columns in ({"url": 1, "caption": 0}, {"url": "1", "caption": "0"}):
        assert listed(path, columns=columns)[0] == expected
    with pytest.raises(DataError, match="column 2 is missing, its first line has 2 columns, counted from 0"):
        listed(path, columns={"url": 1, "caption": 2})


def test_names_of_columns_are_compared_without_case_and_blanks(tmp_path: Path):
    (tmp_path / "t.csv").write_text(f' Image URL ;" Alt-Text "\n{URL.format(0)};a thing\n')
    assert listed(tmp_path / "t.csv")[0] == rows((0, "a thing"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([["one", "two"], [None, " "], None]), ["one", None, None]),
        (pa.array([{"id": 7, "text": "one"}, {"id": 8, "text": None}, None]), ["one", None, None]),
        (pa.array([b"one", "crème".encode(), None]), ["one", "crème", None]),
        (pa.array(["one", "two", None]).dictionary_encode(), ["one", "two", None]),
        (pa.array(["one", "nan", " None "], pa.large_string()), ["one", None, None]),
        (pa.array(["one &amp; two", "R&amp;amp;B &lt;3", "AT&T &#0;"]), ["one & two", "R&amp;B <3", "AT&T &#0;"]),
        (pa.array([1.5, None, 3.0]), [None, None, None]),
    ],
)
def test_captions_of_every_type_of_column(tmp_path: Path, values: pa.Array, expected: list[str | None]):
    pq.write_table(pa.table({"url": [URL.format(n) for n in range(3)], "caption": values}), tmp_path / "t.parquet")
    assert [caption for _, caption in listed(tmp_path / "t.parquet")[0]] == expected


def test_where_a_column_states_nothing_the_next_known_one_counts(tmp_path: Path):
    table = {
        "url": [URL.format(n) for n in range(4)],
        "caption": ["own", None, "", "N/A"],
        "alt_text": ["x", "alt", "?", None],
        "title": ["x", "x", "title", None],
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    assert [c for _, c in listed(tmp_path / "t.parquet")[0]] == ["own", "alt", "title", None]
    assert [c for _, c in listed(tmp_path / "t.parquet", columns={"caption": "title"})[0]] == ["x", "x", "title", None]


@pytest.mark.parametrize("stated", ["?", "nan", "None", "n/a", "", " ", None])
def test_a_licence_that_says_nothing_leaves_the_sources(tmp_path: Path, stated: str | None):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"url": URL.format(0), "license": stated}) + "\n")
    (file,) = list_files(source(path, license_code="CC-BY-4.0"))
    assert (file.license_code, file.metadata.license_stated) == ("CC-BY-4.0", None)
    path.write_text(json.dumps({"url": URL.format(0), "license": "cc by-sa 2.0", "LICENSE": "x"}) + "\n")
    (file,) = list_files(source(path))
    assert (file.license_code, file.metadata.license_stated) == ("CC-BY-SA-2.0", "cc by-sa 2.0")


# --- images in tables -------------------------------------------------------------------------------------------------


def test_images_in_a_table_are_files_without_a_contact(tmp_path: Path):
    """As Hugging Face's datasets store them: struct<bytes, path>; or bytes alone."""
    images = [encode(block_image(n), "JPEG") for n in range(3)]
    (tmp_path / "data").mkdir()
    struct = [{"bytes": content, "path": f"{n}.jpg"} for n, content in enumerate(images)]
    table = pa.table({"image": [*struct, {"bytes": None, "path": "gone.jpg"}], "text": ["a", None, "c", "d"]})
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    settings = {"name": "hf", "path": str(tmp_path / "data" / "*.parquet"), "kind": "table"}
    store = Store(tmp_path / "run")
    report = ingest.run(ingest_params([settings]), store)
    kept = {name.partition("#")[2]: row for name, row in read_kept(store).items()}
    assert {n: (row["caption"], row["license_code"]) for n, row in kept.items()} == {
        "0": ("a", "CC0-1.0"),
        "1": (None, "CC0-1.0"),
        "2": ("c", "CC0-1.0"),
    }
    assert (report.read, report.dropped, report.figures["captions_read"]) == (4, {"not_a_picture": 1}, 3)
    assert "3 read, 2 matched a file, 1 matched none (train-00000-of-00001.parquet#3" in report.notes[0]
    again = ingest.run(ingest_params([settings], "2026.01.11"), store)
    assert (again.read, again.written) == (0, 0)

    pq.write_table(pa.table({"img": images[:1], "caption": ["bytes"]}), tmp_path / "bytes.parquet")
    (file,) = list_files(SourceConfig(name="s", path=str(tmp_path / "bytes.parquet")))
    assert (file.read(1 << 20), file.metadata.caption, file.is_named_image) == (images[0], "bytes", True)
    with pytest.raises(FileRejected, match="too_large"):
        file.read(100)


def test_a_list_of_images_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"images": [[{"bytes": b"x", "path": "a"}]], "text": ["a"]}), path)
    with pytest.raises(DataError, match="column 'images' is a list of images; expected one image per row"):
        listed(path)


def test_a_parquet_of_urls_needs_a_contact(tmp_path: Path):
    pq.write_table(pa.table({"url": [URL.format(0)]}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match="needs 'contact'"):
        list(list_files(SourceConfig(name="s", path=str(tmp_path / "t.parquet"))))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=8), min_size=1, max_size=6),
    st.binary(max_size=6),
    st.integers(0, 400),
    st.sampled_from(["t.csv", "t.tsv", "t.jsonl"]),
)
def test_no_bytes_raise_and_every_row_is_counted(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], junk: bytes, place: int, name: str
):
    separator = "\t" if name == "t.tsv" else ","
    if name == "t.jsonl":
        head, lines = "", [json.dumps({"url": URL.format(n), "caption": c}) for n, c in enumerate(captions)]
    else:
        head, lines = f"url{separator}caption\n", [f"{URL.format(n)}{separator}{c}" for n, c in enumerate(captions)]
    content = bytearray((head + "\n".join(lines)).encode())
    at = len(head) + place % max(1, len(content) - len(head))
    content[at : at + len(junk)] = junk
    path = tmp_path_factory.mktemp("table") / name
    path.write_bytes(bytes(content))
    try:
        listed(path)
    except DataError as error:
        assert name == "t.jsonl" and "line" in str(error) or "missing" in str(error)


def test_rows_of_several_lines_blank_ones_and_a_swallowing_quote_add_up(tmp_path: Path):
    head, tail = f'url,caption\n{URL.format(0)},"two\nlines"\n\n', f'{URL.format(1)},"open\n{URL.format(2)},b\n'
    (tmp_path / "t.csv").write_text(head + tail)
    counts = listed(tmp_path / "t.csv")[2]
    assert (counts.lines, counts.rows, counts.ended_rows) == (3, 3, 3)
    store = Store(tmp_path / "run")
    pixels = [encode(block_image(n)) for n in range(3)]
    pq.write_table(pa.table({"image": [*pixels, None], "caption": ["a", None, "c", "d"]}), tmp_path / "t.parquet")
    report = ingest.run(ingest_params([{"name": "web", "path": str(tmp_path / "t.parquet")}]), store)
    figures = report.figures
    assert report.read == report.written + sum(report.dropped.values()) == figures["table_rows"] == 4
    assert figures["table_lines"] == 4 and figures["captions_read"] == 3
    assert (figures["captions_matched"], figures["captions_unmatched"]) == (2, 1)


@pytest.mark.parametrize(
    "counts",
    [ListingCounts(read=2, matched=1), ListingCounts(lines=3, rows=2, ended_rows=2), ListingCounts(lines=1, rows=1)],
    ids=["a caption", "a line", "a row"],
)
def test_what_is_read_and_not_accounted_for_is_an_error(counts: ListingCounts):
    with pytest.raises(DataError, match="this is a bug"):
        counts.check()
