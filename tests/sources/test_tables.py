"""Tables of URLs: the columns of DataComp, Recap-DataComp and LAION; in constant memory; downloads are verified."""

import bz2
import gzip
import hashlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import SourceConfig, parse_params, read_raw, resolve
from tasks.errors import ConfigError, DataError
from tasks.sources import columnar
from tasks.sources.files import FileRejected
from tasks.sources.open import list_files
from tests.support.web import serving


def source(path: Path | str, **more: Any) -> SourceConfig:
    settings = {"contact": "mailto:me@example.org", "delay_s": 0.0, "allow_hosts": ("127.0.0.1",), **more}
    return SourceConfig(name="web", path=str(path), license_code="unknown", **settings)


def read_captions(path: Path, **more: Any) -> dict[str, str | None]:
    return {f.uri: f.metadata.caption for f in list_files(source(path, **more))}


def test_the_columns_of_published_tables_are_found(tmp_path: Path):
    url = "https://example.org/a.jpg?x=1"
    pq.write_table(
        pa.table({"uid": ["1"], "url": [url], "text": ["datacomp"], "sha256": ["0" * 64]}),
        tmp_path / "datacomp.parquet",
    )
    pq.write_table(
        pa.table({"url": [url], "re_caption": ["recap"], "org_caption": ["old"]}), tmp_path / "recap.parquet"
    )
    pq.write_table(
        pa.table({"URL": [url], "TEXT": ["laion"], "WIDTH": [3], "LICENSE": ["CC0"]}), tmp_path / "laion.parquet"
    )
    (tmp_path / "t.csv").write_text(f"url,caption\n{url},csv\n")
    (tmp_path / "t.tsv").write_text(f"url\tcaption\n{url}\ttsv\n")
    (tmp_path / "t.jsonl").write_text(json.dumps({"url": url, "caption": "jsonl"}) + "\n\n")
    for name, caption in {
        "datacomp.parquet": "datacomp",
        "recap.parquet": "recap",
        "laion.parquet": "laion",
        "t.csv": "csv",
        "t.tsv": "tsv",
        "t.jsonl": "jsonl",
    }.items():
        assert read_captions(tmp_path / name) == {f"web:{url}": caption}
    assert read_captions(tmp_path / "recap.parquet", columns={"caption": "org_caption"}) == {f"web:{url}": "old"}
    assert next(iter(list_files(source(tmp_path / "laion.parquet")))).license_code == "CC0-1.0"
    assert read_captions(tmp_path, kind="table") == {f"web:{url}": "datacomp"}  # by name; a URL is taken once


def test_rows_without_a_usable_url_are_rejected(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text(
        '{"url": null}\n{"url": "file:///etc/passwd"}\n{"url": "http://169.254.169.254/a.jpg"}\n{"url": 7}\n'
    )
    reasons = []
    for file in list_files(source(tmp_path / "t.jsonl")):
        with pytest.raises(FileRejected) as caught:
            file.read(100)
        reasons.append(caught.value.reason)
    assert reasons == ["not_a_picture", "unsafe", "unsafe", "not_a_picture"]


def compress_zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


def test_compressed_tables_are_read_and_unsupported_archives_are_rejected(tmp_path: Path):
    rows = "".join(f"http://example.org/{n}.jpg,a thing of number {n}\n" for n in range(300))
    lines = "".join(
        json.dumps({"url": f"http://example.org/{n}.jpg", "caption": f"a thing of number {n}"}) + "\n"
        for n in range(300)
    )
    plain = {f"web:http://example.org/{n}.jpg": f"a thing of number {n}" for n in range(300)}
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(f"url,caption\n{rows}".encode()))
    (tmp_path / "t.tsv.zst").write_bytes(compress_zstd(f"url\tcaption\n{rows}".replace(",", "\t").encode()))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "t.ndjson.zst").write_bytes(compress_zstd(lines.encode()))
    for name in ("t.csv.gz", "t.tsv.zst", "t.jsonl.gz", "t.ndjson.zst"):
        assert read_captions(tmp_path / name) == plain, name
    (tmp_path / "t.csv.bz2").write_bytes(bz2.compress(rows.encode()))
    *_, packed = list_files(source(tmp_path / "t.csv.bz2"))
    with pytest.raises(FileRejected, match="unpack it") as caught:
        packed.read(10)
    assert (packed.uri, caught.value.reason, packed.fingerprint != "") == ("web:t.csv.bz2", "not_a_picture", True)
    assert set(read_captions(tmp_path, kind="table")) == {*plain, "web:t.csv.bz2"}, "no table of a folder is skipped"


def read_damage(path: Path, **more: Any) -> tuple[dict[str, str | None], dict[str, str]]:
    """(good URIs with their captions, damaged URIs with the reason and why)."""
    good, bad = {}, {}
    for file in list_files(source(path, **more)):
        if file.is_rejected:
            with pytest.raises(FileRejected) as caught:
                file.read(100)
            bad[file.uri] = str(caught.value)
        else:
            good[file.uri] = file.metadata.caption
    return good, bad


@pytest.mark.parametrize("pack", [pytest.param(gzip.compress, marks=pytest.mark.slow), compress_zstd])
def test_of_a_cut_table_all_rows_before_the_cut_are_read_and_a_bomb_is_not_unpacked(
    tmp_path: Path, pack: Callable[[bytes], bytes]
):
    path = tmp_path / ("t.csv.gz" if pack is gzip.compress else "t.csv.zst")
    noise = [f"http://example.org/{hashlib.sha256(str(n).encode()).hexdigest()}.jpg" for n in range(3_000)]
    whole = pack("url\n{}\n".format("\n".join(noise)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    good, bad = read_damage(path)
    assert list(good) == [f"web:{url}" for url in noise[: len(good)]] and len(good) > 1_000
    assert len(bad) == 1 and f"the file is damaged after line {len(good) + 1}" in next(iter(bad.values()))
    path.write_bytes(b"no such thing")
    good, bad = read_damage(path)
    assert not good and next(iter(bad.values())).startswith("unreachable: the file is damaged after line 0")
    path.write_bytes(pack(b"url\n" + b"http://example.org/a.jpg\n" * 1_000_000))
    good, bad = read_damage(path)
    assert list(good) == ["web:http://example.org/a.jpg"] and "more than 200 times its size; unpack it" in str(bad)
    path.write_bytes(pack(b"url\n" + b"x" * 40_000_000))  # one line
    tracemalloc.start()
    assert "a line of more than" in str(read_damage(path)) or "more than 200 times" in str(read_damage(path))
    assert tracemalloc.get_traced_memory()[1] < 120_000_000
    tracemalloc.stop()


def test_wrong_tables_are_configuration_or_data_errors(tmp_path: Path):
    (tmp_path / "t.csv").write_text("link\nhttp://example.org/a.jpg\n")
    with pytest.raises(DataError, match="column 'url' is missing"):
        read_captions(tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="expected one JSON object per line"):
        read_captions(tmp_path / "t.jsonl")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no")
    assert "the Parquet file cannot be read" in str(read_damage(tmp_path / "t.parquet"))
    with pytest.raises(ConfigError, match="nothing at"):
        read_captions(tmp_path / "no.csv")
    change = {"ingest": {"sources": [{"name": "web", "path": "urls.csv"}]}}
    with pytest.raises(ConfigError, match="needs 'contact'"):
        parse_params(resolve(read_raw(Path("params.yaml")), "test", change))


def test_a_long_table_takes_constant_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(columnar, "BATCH_ROWS", 500)

    def peak(rows: int) -> int:
        table = pa.table(
            {
                "url": [f"http://example.org/{n}.jpg" for n in range(rows)],
                "caption": [f"a thing of number {n}" for n in range(rows)],
            }
        )
        pq.write_table(table, tmp_path / "t.parquet", row_group_size=500)
        del table
        tracemalloc.start()
        count = sum(1 for _ in list_files(source(tmp_path / "t.parquet")))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == rows
        return size

    peak(10)
    small, large = peak(1_000), peak(5_000)
    assert large < small * 1.1


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"image a")
    with serving(folder) as address:
        yield address


def test_a_download_is_verified_against_the_tables_sha256(site: str, tmp_path: Path):
    right, wrong = hashlib.sha256(b"image a").hexdigest(), "0" * 64
    for sha256 in (right, wrong):
        (tmp_path / "t.jsonl").write_text(json.dumps({"url": f"{site}/a.jpg", "sha256": sha256}) + "\n")
        (file,) = list_files(source(tmp_path / "t.jsonl"))
        assert file.fingerprint.startswith(sha256) and file.is_remote and file.is_named_image
        if sha256 == right:
            assert (file.read(100), file.read(100).robots) == (b"image a", "absent")
        else:
            with pytest.raises(FileRejected) as caught:
                file.read(100)
            assert (caught.value.reason, caught.value.robots) == ("changed", "absent")


def test_a_table_in_a_bucket(s3: Any, s3_url: str, tmp_path: Path):
    s3.put_object(Bucket="images", Key="tables/t.csv", Body=b"url,caption\nhttp://example.org/a.jpg,a thing\n")
    (file,) = list_files(source("s3://images/tables/*.csv", endpoint_url=s3_url))
    assert (file.uri, file.metadata.caption) == ("web:http://example.org/a.jpg", "a thing")
    s3.put_object(
        Bucket="images",
        Key="tables/u.jsonl.gz",
        Body=gzip.compress(b'{"url": "http://example.org/b.jpg", "caption": "another"}\n'),
    )
    s3.put_object(Bucket="images", Key="tables/v.jsonl.xz", Body=b"xz")
    uris = [f.uri for f in list_files(source("s3://images/tables", kind="table", endpoint_url=s3_url))]
    assert uris == ["web:http://example.org/a.jpg", "web:http://example.org/b.jpg", "web:v.jsonl.xz"]


def test_a_folder_that_datasets_has_saved_is_read_as_a_parquet_table_is(tmp_path: Path):
    """`save_to_disk` writes Arrow streams; its struct of bytes and path, dictionaries and lists are read as usual."""
    rows = {
        "image": [{"bytes": b"\xff\xd8one", "path": "a.jpg"}, {"bytes": b"\xff\xd8two", "path": None}],
        "text": pa.array(["first", "second"]).dictionary_encode(),
    }
    table = pa.table(rows)
    (tmp_path / "saved" / "train").mkdir(parents=True)
    for name, make in (("train/data-00000-of-00001.arrow", pa.ipc.new_stream), ("x.feather", pa.ipc.new_file)):
        with pa.OSFile(str(tmp_path / "saved" / name), "wb") as file, make(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    pq.write_table(table, tmp_path / "same.parquet")

    def read(path: Path) -> list[tuple[str, bytes, str | None]]:
        config = SourceConfig(name="web", path=str(path), kind="table")
        return [(f.uri.rpartition("#")[2], f.read(99), f.metadata.caption) for f in list_files(config)]

    expected = [("0", b"\xff\xd8one", "first"), ("1", b"\xff\xd8two", "second")]
    assert read(tmp_path / "same.parquet") == expected
    assert read(tmp_path / "saved") == [*expected, *expected]
    assert read(tmp_path / "saved" / "train") == expected


@pytest.mark.parametrize("cut_bytes", [1, 8, 200, 10_000])
def test_an_arrow_stream_that_is_cut_gives_the_rows_before_the_cut_and_one_for_the_damage(
    tmp_path: Path, cut_bytes: int
):
    table = pa.table({"image": [bytes([n]) * 4_000 for n in range(8)]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    (tmp_path / "a.arrow").write_bytes(bytes(sink.getvalue())[:-cut_bytes])
    *images, damage = list_files(SourceConfig(name="web", path=str(tmp_path / "a.arrow")))
    assert [f.read(9_999)[0] for f in images] == list(range({1: 8, 8: 8, 200: 6, 10_000: 4}[cut_bytes]))
    with pytest.raises(FileRejected) as caught:
        damage.read(1)
    assert (caught.value.reason, caught.value.is_lasting, damage.uri) == (
        "unreachable",
        False,
        f"web:a.arrow#{len(images)}",
    )
