"""Untrusted tars: every member is a file, a caption or rejected; nothing is extracted, nothing unpickled."""

import gzip
import os
import pickle
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.config import SourceConfig, parse_params, read_raw, resolve
from tasks.errors import ConfigError
from tasks.ingest import stage as ingest
from tasks.records import StageReport
from tasks.sources import tars
from tasks.sources.files import FileRejected, SourceFile
from tasks.sources.open import list_files
from tasks.store import Store, tables
from tests.support.tars import Member, make_tar


def source(path: str, **more: Any) -> SourceConfig:
    return SourceConfig(name="wds", path=path, license_code="CC0-1.0", **more)


def read_all(files: list[SourceFile]) -> dict[str, bytes | str]:
    """Path inside the source -> bytes, or the reason of the rejection."""
    results: dict[str, bytes | str] = {}
    for file in files:
        try:
            results[file.uri.partition(":")[2]] = bytes(file.read(10_000))
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


def test_a_compressed_tar_is_rejected_with_the_next_step(tmp_path: Path, s3: Any, s3_url: str):
    content = gzip.compress(make_tar([("1.jpg", b"one")]))
    (tmp_path / "a.tar.gz").write_bytes(content)
    (tmp_path / "b.tgz").write_bytes(content)
    (tmp_path / "c.tar").write_bytes(make_tar([("1.jpg", b"one")]))
    s3.put_object(Bucket="images", Key="w/a.tar.gz", Body=content)
    for files, names in (
        (list_files(source(str(tmp_path), kind="tars")), ["a.tar.gz", "b.tgz", "c.tar/1.jpg"]),
        (list_files(source(str(tmp_path / "a.tar.gz"))), ["a.tar.gz"]),
        (list_files(source("s3://images/w/*.tar.gz", endpoint_url=s3_url)), ["a.tar.gz"]),
    ):
        read = list(files)
        assert [f.uri.partition(":")[2] for f in read] == names and all(f.fingerprint for f in read)
        with pytest.raises(FileRejected, match="unpack it to .tar") as caught:
            read[0].read(10)
        assert caught.value.reason == "not_a_picture"


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


def test_any_number_of_members_is_listed_in_constant_memory(tmp_path: Path):
    """The run over a million by hand: docs/decisions/0026."""

    def peak(count: int) -> int:
        write_many_members(tmp_path / "m.tar", count)
        tracemalloc.start()
        reasons: Counter[str] = Counter()
        for file in list_files(source(str(tmp_path / "m.tar"))):
            try:
                reasons["empty" if file.read(10) == b"" else "bytes"] += 1
            except FileRejected as rejected:
                reasons[rejected.reason] += 1
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
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
