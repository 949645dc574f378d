"""Untrusted tars: every member is a file, a caption or rejected; nothing is extracted, nothing unpickled."""

import bz2
import gc
import gzip
import lzma
import os
import pickle
import random
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import SourceConfig, parse_params, read_raw, resolve
from tasks.errors import ConfigError
from tasks.ingest import stage as ingest
from tasks.ingest.staging import load_file
from tasks.records import StageReport
from tasks.sources import tars
from tasks.sources.files import FileRejected, SourceFile
from tasks.sources.open import list_files
from tasks.store import Store, tables
from tests.support.tars import Member, make_tar


def source(path: str, **more: Any) -> SourceConfig:
    return SourceConfig(name="wds", path=path, license_code="CC0-1.0", **more)


def read_all(files: list[SourceFile], limit_bytes: int = 10_000) -> dict[str, bytes | str]:
    """Path inside the source -> bytes, or the reason of the rejection."""
    results: dict[str, bytes | str] = {}
    for file in files:
        try:
            results[file.uri.partition(":")[2]] = bytes(file.read(limit_bytes))
        except FileRejected as rejected:
            results[file.uri.partition(":")[2]] = rejected.reason
    assert len(results) == len(files)
    return results


def test_images_come_with_their_captions_in_the_order_of_the_tar(tmp_path: Path):
    members = [
        ("b/1.jpg", b"one"),
        ("b/1.txt", b"first \n thing"),
        ("b/2.json", b'{"caption": "second", "license": "CC-BY-4.0", "author": "her"}'),
        ("b/2.png", b"two"),
        ("a/3.jpg", b"three"),
        ("a/3.json", b"[1, 2"),
        ("a/1.webp", b"four"),
        ("a/1.cls", b"7"),
    ]
    (tmp_path / "x.tar").write_bytes(make_tar(members))
    (tmp_path / "w.tar").write_bytes(make_tar([("9.jpg", b"nine")]))
    files = list(list_files(source(str(tmp_path / "*.tar"))))
    assert [(f.uri, f.metadata.caption, f.license_code, f.attribution) for f in files if f.is_named_image] == [
        ("wds:w.tar/9.jpg", None, "CC0-1.0", ""),
        ("wds:x.tar/b/1.jpg", "first thing", "CC0-1.0", ""),
        ("wds:x.tar/b/2.png", "second", "CC-BY-4.0", "her"),
        ("wds:x.tar/a/3.jpg", None, "CC0-1.0", ""),
        ("wds:x.tar/a/1.webp", None, "CC0-1.0", ""),
    ]
    read = read_all(files)
    assert [read[k] for k in ("w.tar/9.jpg", "x.tar/b/1.jpg", "x.tar/a/1.webp", "x.tar/a/1.cls")] == [
        b"nine",
        b"one",
        b"four",
        b"7",  # its bytes will tell that it is no image
    ]
    assert [f.uri for f in list_files(source(str(tmp_path), kind="tars"))] == [f.uri for f in files]
    with pytest.raises(ConfigError, match="nothing at"):
        list(list_files(source(str(tmp_path / "no.tar"))))


def pack(packing: str, content: bytes) -> bytes:
    """A tar's bytes, compressed."""
    if packing in ("zst", "lz4"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, {"zst": "zstd", "lz4": "lz4"}[packing]) as stream:
            stream.write(content)
        return bytes(sink.getvalue())
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "none": bytes}[packing](content)


NOISE = [random.Random(n).randbytes(150_000) for n in range(6)]  # more than Zstandard compresses at once


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        ("a.tar.gz", "gz"),
        ("a.tgz", "gz"),
        ("a.tar.bz2", "bz2"),
        ("a.txz", "xz"),
        ("a.tar.zst", "zst"),
        ("a.tar.lz4", "lz4"),
        ("a.tar.gz", "none"),  # a name that is no longer true
        ("a.tar", "gz"),
    ],
)
def test_a_compressed_tar_is_read_as_a_plain_one_also_by_another_process(tmp_path: Path, name: str, packing: str):
    content = make_tar([("1.jpg", b"one"), ("1.txt", b"a caption"), ("2.jpg", b"two"), ("../3.jpg", b"three")])
    (tmp_path / name).write_bytes(pack(packing, content))
    files = list(list_files(source(str(tmp_path / name))))
    arrived = [load_file(pickle.dumps(file)) for file in files]
    assert read_all(arrived) == {f"{name}/1.jpg": b"one", f"{name}/2.jpg": b"two", f"{name}/../3.jpg": "unsafe"}
    assert [file.metadata.caption for file in arrived] == ["a caption", None, None]
    assert list(list_files(source(str(tmp_path / name)), lambda fingerprint: fingerprint.endswith("/end"))) == []


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_tar_that_is_cut_gives_its_readable_members_and_one_row_for_the_damage(
    tmp_path: Path, packing: str
):
    whole = pack(packing, make_tar([(f"{n}.jpg", noise) for n, noise in enumerate(NOISE)]))
    (tmp_path / f"a.tar.{packing}").write_bytes(whole[: len(whole) * 3 // 5])
    read = read_all(list(list_files(source(str(tmp_path / f"a.tar.{packing}")))), 1 << 20)
    assert list(read.values())[-1] == "unreachable" and f"/#{len(read) - 1}" in list(read)[-1]
    good = [content for content in read.values() if isinstance(content, bytes)]
    assert good == NOISE[: len(good)] and (packing == "bz2" or len(good) >= 2)  # bzip2 unpacks by 900 kB


def test_a_compressed_tar_in_a_bucket_is_read_and_a_bomb_is_not_unpacked(tmp_path: Path, s3: Any, s3_url: str):
    s3.put_object(Bucket="images", Key="w/a.tar.gz", Body=gzip.compress(make_tar([("1.jpg", b"one")])))
    (file,) = list_files(source("s3://images/w/*.tar.gz", endpoint_url=s3_url))
    assert load_file(pickle.dumps(file)).read(10) == file.read(10) == b"one"
    bomb = gzip.compress(make_tar([("1.jpg", b"one"), ("2.jpg", bytes(8 << 20))]))
    (tmp_path / "b.tar.gz").write_bytes(bomb)
    *images, damage = list_files(source(str(tmp_path / "b.tar.gz")))
    assert images[0].read(10) == b"one" and len(images) == 2
    with pytest.raises(FileRejected, match="unpacks to more than 200 times its size"):
        damage.read(10)


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/megapairs-unpickled",)


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry


def test_hostile_members_are_rejected_and_nothing_is_written(tmp_path: Path):
    members: list[Member | tarfile.TarInfo] = [
        ("../up.jpg", b"x"),
        ("a/../../up.jpg", b"x"),
        ("/etc/up.jpg", b"x"),
        ("C:\\up.jpg", b"x"),
        ("..\\up.jpg", b"x"),
        ("trap.pkl", pickle.dumps(Trap())),
        ("trap.pyd", b"MZ"),
        special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.jpg", tarfile.LNKTYPE, "good.jpg"),
        special("device.jpg", tarfile.CHRTYPE),
        special("pipe.jpg", tarfile.FIFOTYPE),
        special("folder", tarfile.DIRTYPE),
        ("good.jpg", b"good"),
        ("good.jpg", b"again"),
        ("n" * 5_000 + ".jpg", b"long"),
        ("new\nline.jpg", b"line"),
    ]
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "h.tar").write_bytes(make_tar(members))
    before = sorted(tmp_path.rglob("*"))
    read = read_all(list(list_files(source(str(inside / "h.tar")))))
    assert [v for v in read.values() if isinstance(v, bytes)] == [b"good", b"long", b"line"]
    assert [v for v in read.values() if v == "unsafe"] == ["unsafe"] * 12
    assert read["h.tar/new\\nline.jpg"] == b"line" and read["h.tar/good.jpg#12"] == "unsafe"
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/megapairs-unpickled").exists()


def write_many_members(path: Path, count: int) -> None:
    """A tar of `count` members: images of no bytes, every tenth of another type, the last with a name that occurred."""
    with open(path, "wb") as f:
        for n in range(count):
            entry = tarfile.TarInfo(f"{n:07d}.{'cls' if n % 10 == 0 else 'jpg'}" if n < count - 1 else "0000001.jpg")
            f.write(entry.tobuf(tarfile.USTAR_FORMAT))
        f.write(b"\0" * 1024)


@pytest.mark.slow
def test_any_number_of_members_is_listed_in_constant_memory(tmp_path: Path):
    """The run over a million by hand: docs/decisions/0026."""

    def peak(count: int) -> int:
        write_many_members(tmp_path / "m.tar", count)
        gc.collect()  # what other tests left is collected, and counted, at no time between
        gc.disable()
        tracemalloc.start()
        reasons: Counter[str] = Counter()
        for file in list_files(source(str(tmp_path / "m.tar"))):
            try:
                reasons["empty" if file.read(10) == b"" else "bytes"] += 1
            except FileRejected as rejected:
                reasons[rejected.reason] += 1
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gc.enable()
        assert reasons == {"empty": count - 1, "unsafe": 1}
        return size

    small, large = peak(2_500), peak(7_500)  # tars of more than a MiB, the piece that is hashed at a time
    assert large < small + 50_000


def test_every_member_is_a_row_and_the_next_batch_only_hashes_the_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_many_members(tmp_path / "m.tar", 5_003)
    monkeypatch.setattr(tables, "BATCH_ROWS", 100)
    monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 1_000)

    def run(batch: str) -> StageReport:
        changes = {
            "open_run": {"batch": batch, "date": batch.replace(".", "-")},
            "ingest": {"sources": [{"name": "m", "path": str(tmp_path / "m.tar")}]},
        }
        return ingest.run(
            parse_params(resolve(read_raw(Path("params.yaml")), "test", changes)), Store(tmp_path / "run")
        )

    report = run("2026.01.04")
    assert (report.read, report.written, report.dropped) == (
        5_003,
        0,
        {"not_a_picture": 501, "undecodable": 4_501, "unsafe": 1},
    )
    keys = Store(tmp_path / "run").read_dropped("ingest").column("key").to_pylist()
    assert len(set(keys)) == 5_003 and "m:m.tar/0000001.jpg#5002" in keys[-2:]
    assert run("2026.01.11").read == 0


def test_a_header_that_claims_a_gibibyte_is_damage(tmp_path: Path):
    """A pax header of 1 GiB, in a sparse file; tarfile would read it as a whole."""
    entry = tarfile.TarInfo("pax")
    entry.type, entry.size = tarfile.XHDTYPE, 1 << 30
    with open(tmp_path / "p.tar", "wb") as f:
        f.write(make_tar([("a.jpg", b"a")])[:1024] + entry.tobuf(tarfile.USTAR_FORMAT))
        f.truncate(1 << 24)
    read = read_all(list(list_files(source(str(tmp_path / "p.tar")))))
    assert list(read.values()) == [b"a", "unreachable"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5_000), st.binary(min_size=1, max_size=40), st.integers(0, 4_000))
def test_no_bytes_raise_and_every_file_is_listed(
    tmp_path_factory: pytest.TempPathFactory, place: int, junk: bytes, cut: int
):
    content = bytearray(make_tar([("a.jpg", b"a" * 600), ("a.txt", b"x"), ("b.png", b"b"), ("../c", b"c")]))
    place %= len(content)
    content[place : place + len(junk)] = junk
    path = tmp_path_factory.mktemp("tar") / "t.tar"
    path.write_bytes(bytes(content[: len(content) - cut]))
    files = list(list_files(source(str(path))))
    read_all(files)
    assert not files or [f.fingerprint.endswith("/end") for f in files] == [False] * (len(files) - 1) + [True]


def test_a_tar_known_to_its_end_is_skipped(tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(make_tar([("1.jpg", b"one"), ("2.jpg", b"two")]))
    first = list(list_files(source(str(tmp_path / "*.tar"))))
    seen = {f.fingerprint for f in first}
    assert list(list_files(source(str(tmp_path / "*.tar")), seen.__contains__)) == []
    part = {first[0].fingerprint}  # a limit left the rest
    assert [f.uri for f in list_files(source(str(tmp_path / "*.tar")), part.__contains__)] == [f.uri for f in first]
    (tmp_path / "x.tar").write_bytes(make_tar([("1.jpg", b"one"), ("2.jpg", b"TWO")]))
    assert len(list(list_files(source(str(tmp_path / "*.tar")), seen.__contains__))) == 2


@pytest.mark.parametrize("has_disk", [True, False])
def test_a_tar_in_a_bucket_is_listed_as_on_a_disk(
    s3: Any, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_disk: bool
):
    if not has_disk:
        monkeypatch.setattr(tars.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    content = make_tar(
        [
            ("1.jpg", b"one"),
            ("1.txt", b"a thing"),
            ("big.jpg", b"B" * 9_000),
            ("../c", b"c"),
            ("2.jpg", b"two" * 512),
            ("2.txt", b"last"),
        ]
    )
    (tmp_path / "x.tar").write_bytes(content)
    s3.put_object(Bucket="images", Key="w/x.tar", Body=content)
    local = list(list_files(source(str(tmp_path / "*.tar"))))
    remote = list(list_files(source("s3://images/w/*.tar", endpoint_url=s3_url)))
    assert [(f.uri, f.metadata) for f in local] == [(f.uri, f.metadata) for f in remote]
    assert read_all(local) == read_all(remote) and read_all(local)["x.tar/big.jpg"] == b"B" * 9_000
    assert (
        list(
            list_files(source("s3://images/w/x.tar", endpoint_url=s3_url), {f.fingerprint for f in remote}.__contains__)
        )
        == []
    )
