"""Captions in tars: each its own whatever the names; texts behind their images; damage anywhere; any suffix."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.ingest import stage as ingest
from tasks.sources.counts import ListingCounts
from tasks.sources.files import FileRejected
from tasks.sources.open import list_files
from tasks.store import Store
from tests.support.images import block_image, encode
from tests.support.ingest import ingest_params, read_drop_reasons, read_kept
from tests.support.tars import Member, make_tar


def listed(path: Path, **more: Any) -> tuple[dict[str, str | None], dict[str, str], ListingCounts]:
    """(member -> caption, place of a rejection -> why, counts)."""
    good: dict[str, str | None] = {}
    bad, counts = {}, ListingCounts()
    for file in list_files(SourceConfig(name="t", path=str(path), **more), counts=counts):
        inside = file.uri.partition(".tar/")[2]
        if file.is_rejected:
            with pytest.raises(FileRejected) as caught:
                file.read(1 << 20)
            bad[inside] = caught.value.detail
        else:
            good[inside] = file.metadata.caption
    assert counts.captions == counts.matched + counts.unmatched
    assert counts.files_without_caption == sum(caption is None for caption in good.values())
    return good, bad, counts


@pytest.mark.parametrize(
    ("members", "expected", "unmatched"),
    [
        # dots in names
        (
            [f"IMG_2024.01.0{n}.{suffix}" for n in range(3) for suffix in ("jpg", "txt")],
            {f"IMG_2024.01.0{n}.jpg": f"IMG_2024.01.0{n}.txt" for n in range(3)},
            0,
        ),
        (
            ["IMG.01.jpg", "IMG.02.txt", "IMG.03.jpg"],
            {"IMG.01.jpg": None, "IMG.03.jpg": None},
            1,
        ),
        # texts behind the images, before them, in another order
        (["0.jpg", "1.jpg", "0.txt", "1.txt"], {"0.jpg": "0.txt", "1.jpg": "1.txt"}, 0),
        (["1.txt", "0.txt", "0.jpg", "1.jpg"], {"0.jpg": "0.txt", "1.jpg": "1.txt"}, 0),
        # key.txt before key.*.txt
        (["a.jpg", "a.alt.txt", "a.caption.txt", "a.txt"], {"a.jpg": "a.txt"}, 0),
        (["a.jpg", "a.zzz.txt", "a.caption.txt"], {"a.jpg": "a.caption.txt"}, 0),
        (["a.jpg", "a.jpg.txt"], {"a.jpg": "a.jpg.txt"}, 0),
        (["d.x/a.jpg", "d.y/a.txt", "d.x/a.caption"], {"d.x/a.jpg": "d.x/a.caption"}, 1),
        (["a.seg.png", "a.txt"], {"a.seg.png": "a.txt"}, 0),
        # one text of two images; a name that differs by case or Unicode form alone
        (["a.jpg", "a.png", "a.txt"], {"a.jpg": "a.txt", "a.png": "a.txt"}, 0),
        (["A/B.JPG", "a/b.TXT"], {"A/B.JPG": "a/b.TXT"}, 0),
        (["caf\u00e9.jpg", "cafe\u0301.txt"], {"caf\u00e9.jpg": "cafe\u0301.txt"}, 0),
        (["B.jpg", "b.txt", "b.jpg"], {"B.jpg": "b.txt", "b.jpg": "b.txt"}, 0),
        (["a.jpg", "b.txt"], {"a.jpg": None}, 1),
    ],
)
def test_each_image_has_its_own_caption(
    tmp_path: Path, members: list[str], expected: dict[str, str | None], unmatched: int
):
    """A text says its own name."""
    (tmp_path / "x.tar").write_bytes(make_tar([(name, name.encode()) for name in members]))
    good, bad, counts = listed(tmp_path / "x.tar")
    captions = {name: caption and caption.replace("cafe\u0301", "caf\u00e9") for name, caption in expected.items()}
    assert (good, bad, counts.unmatched) == (captions, {}, unmatched)
    assert counts.unmatched == 0 or "no image beside it" in counts.examples[0]


def test_an_address_is_no_caption(tmp_path: Path):
    url = ("a.url.txt", b"http://example.org/a.jpg")
    (tmp_path / "x.tar").write_bytes(make_tar([("a.jpg", b"a"), ("a.txt", b"a thing"), url]))
    good, _, counts = listed(tmp_path / "x.tar")
    assert (good, counts.matched, counts.unmatched) == ({"a.jpg": "a thing"}, 1, 0)
    (tmp_path / "x.tar").write_bytes(make_tar([("a.jpg", b"a"), url]))
    assert listed(tmp_path / "x.tar")[0] == {"a.jpg": None}


def test_what_texts_and_objects_state_is_put_together(tmp_path: Path):
    """As img2dataset writes: .txt, and .json with everything."""
    of_json = b'{"caption": "of json", "url": "http://e.org/1", "license": "cc by 4.0", "author": null, "key": "1"}'
    (tmp_path / "x.tar").write_bytes(make_tar([("1.jpg", b"1"), ("1.json", of_json), ("1.txt", b"of text &amp; all")]))
    (file,) = list_files(SourceConfig(name="t", path=str(tmp_path / "x.tar")))
    assert (file.metadata.caption, file.license_code, file.metadata.license_stated) == (
        "of text & all",
        "CC-BY-4.0",
        "cc by 4.0",
    )
    assert listed(tmp_path / "x.tar")[2].captions == 1
    (tmp_path / "x.tar").write_bytes(make_tar([("1.jpg", b"1"), ("1.json", b'["", "second"]')]))
    assert listed(tmp_path / "x.tar")[0] == {"1.jpg": "second"}


def test_a_text_of_another_encoding_is_told_and_never_replaced(tmp_path: Path):
    cp1252, utf16 = ("1.txt", "café".encode("cp1252")), ("2.txt", "café".encode("utf-16"))
    (tmp_path / "x.tar").write_bytes(make_tar([("1.jpg", b"1"), cp1252, ("2.jpg", b"2"), utf16]))
    good, _, counts = listed(tmp_path / "x.tar")
    assert good == {"1.jpg": None, "2.jpg": "café"} and "x.tar/1.txt: its bytes are not UTF-8" in counts.notes[0]
    assert listed(tmp_path / "x.tar", encoding="cp1252")[0] == {"1.jpg": "café", "2.jpg": "café"}


def test_captions_of_which_none_meets_an_image_are_an_error(tmp_path: Path):
    members = [(f"i/{n}.jpg", b"x") for n in range(12)] + [(f"t/{n}.txt", b"a thing") for n in range(12)]
    (tmp_path / "x.tar").write_bytes(make_tar(members))
    with pytest.raises(
        DataError, match=r"0 of 12 captions match a file: captions of \['x.tar/t/0.txt .*t:x.tar/i/0.jpg"
    ):
        listed(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(make_tar([*members, ("i/3.txt", b"one")]))
    assert listed(tmp_path / "x.tar")[2].unmatched == 12


# --- damage -----------------------------------------------------------------------------------------------------------

FIVE: list[Member] = [(f"{n}.{suffix}", f"{n}".encode() * 600) for n in range(5) for suffix in ("jpg", "txt")]
SIZE = 512 + 1024  # of one member: header, and 600 bytes in two blocks


def damaged(content: bytes, *places: int) -> bytes:
    changed = bytearray(content)
    for place in places:
        changed[place] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    ("content", "good", "why"),
    [
        (damaged(make_tar(FIVE), 2 * SIZE + 5), [0, 2, 3, 4], "after 2 members: bad checksum"),
        (damaged(make_tar(FIVE), 5), [1, 2, 3, 4], "after 0 members: bad checksum"),
        (damaged(make_tar(FIVE), 2 * SIZE + 150, 4 * SIZE + 150), [0, 3, 4], "after 2 members"),
        (make_tar(FIVE)[: 4 * SIZE], [0, 1], "after 4 members: it ends without the zero blocks"),
        (make_tar(FIVE)[: 4 * SIZE + 200], [0, 1], "after 4 members: "),
        (make_tar(FIVE)[: 4 * SIZE + 700], [0, 1, 2], "after 5 members: it ends within its last member"),
        (b"", [], "after 0 members: it is empty"),
        (b"no tar at all, but long enough" * 100, [], "after 0 members: "),
    ],
)
def test_damage_anywhere_is_a_row_and_the_members_behind_are_read(
    tmp_path: Path, content: bytes, good: list[int], why: str
):
    (tmp_path / "x.tar").write_bytes(content)
    images, bad, _ = listed(tmp_path / "x.tar")
    assert sorted(name for name in images if name.endswith(".jpg")) == [f"{n}.jpg" for n in good]
    assert len(bad) >= 1 and f"the tar is damaged {why}" in next(iter(bad.values()))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_one_behind_the_other_are_all_read(tmp_path: Path, format: int):
    first, second = FIVE[:4], [("a/" + "long" * 20 + ".jpg", b"x"), ("0.jpg", b"another"), ("0.txt", b"of it")]
    (tmp_path / "x.tar").write_bytes(make_tar(first, format) + make_tar(second, format))
    images, bad, _ = listed(tmp_path / "x.tar")
    assert list(images) == ["0.jpg", "1.jpg", "a/" + "long" * 20 + ".jpg", "0.jpg#5"] and not bad


def test_long_names_and_sparse_members(tmp_path: Path):
    name = "n" * 300 + "/\u00e9" * 80
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        (tmp_path / "x.tar").write_bytes(make_tar([(f"{name}.jpg", b"x"), (f"{name}.txt", b"a thing")], format))
        assert list(listed(tmp_path / "x.tar")[0].values()) == ["a thing"]
    sparse = tarfile.TarInfo("s.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "x.tar").write_bytes(make_tar([("a.jpg", b"x"), sparse, ("b.jpg", b"x")], tarfile.GNU_FORMAT))
    images, bad, _ = listed(tmp_path / "x.tar")
    assert list(images) == ["a.jpg", "b.jpg"] and list(bad) == ["s.jpg"]


def test_members_are_told_by_their_bytes_and_litter_is_none(tmp_path: Path):
    images = [encode(block_image(n), "JPEG") for n in range(5)]
    names = ["a.jpg", "b.jfif", "c.jpe", "d", "e.img"]
    litter = ["._a.jpg", "__MACOSX/._a.jpg", "sub/.DS_Store", "Thumbs.db", "desktop.ini", "@eaDir/a.jpg"]
    members = [*zip(names, images, strict=True), *((name, b"\0\x05\x16\x07" * 20) for name in litter)]
    (tmp_path / "x.tar").write_bytes(make_tar([*members, ("f.jfif", b"broken"), ("g.npy", b"\x93NUMPY")]))
    store = Store(tmp_path / "run")
    ingest.run(ingest_params([{"name": "t", "path": str(tmp_path / "x.tar")}]), store)
    assert sorted(read_kept(store)) == [f"x.tar/{name}" for name in names]
    assert read_drop_reasons(store) == {
        **{f"x.tar/{name}": "not_a_picture" for name in [*litter, "g.npy"]},
        "x.tar/f.jfif": "undecodable",
    }


def test_no_two_files_have_one_uri(tmp_path: Path):
    (tmp_path / "a.tar").mkdir()
    inner = make_tar([("c.jpg", b"1")])
    (tmp_path / "a.tar" / "b.tar").write_bytes(inner)
    members = [("x.jpg", b"1"), ("x.jpg", b"2"), ("x.jpg#1", b"3"), ("b.tar/c.jpg", b"4")]
    (tmp_path / "a.tar" / "z.tar").write_bytes(make_tar(members))
    uris = [f.uri for f in list_files(SourceConfig(name="t", path=str(tmp_path), kind="tars"))]
    assert len(uris) == len(set(uris)) == 5
    with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
        assert tar.getnames() == ["c.jpg"]
