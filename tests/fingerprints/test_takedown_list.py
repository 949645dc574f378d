"""The takedown list: every way to name an image is understood, and what is not understood is an error with its line."""

from pathlib import Path
from typing import Any

import pytest

from tasks.errors import ConfigError
from tasks.fingerprints.hash_lists import read_lists
from tasks.fingerprints.takedown_list import Limits, TakedownList, parse_lines, read_entries

SHA, OTHER = "a1" * 32, "B2" * 32
LIMITS = Limits(confirmed_bits=16, thumbnail_max=8.0, alone_bits=6)


def image(name: str, uri: str, phash: int = 0, thumbnail: bytes = bytes(192), source: str = "") -> dict[str, Any]:
    row = {"image_id": name, "source_uri": uri, "source_sha256": source}
    return {**row, "phash": f"{phash:016x}", "thumbnail": thumbnail}


@pytest.mark.parametrize(
    ("line", "kind", "value", "date", "reason"),
    [
        (SHA, "sha256", SHA, "", "request"),
        (f"{OTHER},2026-01-15 # asked by the artist", "sha256", OTHER.lower(), "2026-01-15", "request"),
        (f"sha256: {SHA}; privacy; 2026-01-15", "sha256", SHA, "2026-01-15", "privacy"),
        ("00000000000000f0", "phash", "00000000000000f0", "", "request"),
        ("shop:a b, c.jpg", "source_uri", "shop:a b", "", "request"),
        ('"shop:a b, c.jpg",2026-02-01,licence', "source_uri", "shop:a b, c.jpg", "2026-02-01", "licence"),
        (f"shop:{SHA}.jpg", "source_uri", f"shop:{SHA}.jpg", "", "request"),
        ("laion:t.parquet#12", "source_uri", "laion:t.parquet#12", "", "request"),
        ("https://example.org/a.jpg#top\t2026-01-15", "url", "https://example.org/a.jpg#top", "2026-01-15", "request"),
        ("source:shop", "source", "shop", "", "request"),
        (f"{SHA}  0000000000000001.jpg", "sha256", SHA, "", "request"),  # as sha256sum prints it: no perceptual hash
        (f"{SHA}  photos/0123456789abcdef", "sha256", SHA, "", "request"),
        (f'{{"sha256": "{SHA}", "asked_on": "2026-01-15"}}', "sha256", SHA, "2026-01-15", "request"),
        ('{"source_uri": "shop:1.jpg", "reason": "illegal"}', "source_uri", "shop:1.jpg", "", "illegal"),
    ],
)
def test_a_line_names_an_image(line: str, kind: str, value: str, date: str, reason: str):
    (entry,) = parse_lines([line], "list.txt")
    assert (entry.kind, entry.value, entry.date, entry.reason) == (kind, value, date, reason)
    (again,) = parse_lines([entry.to_json()], "copy")
    assert again == entry


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (f"{SHA}\n\nplease remove my cat\n", r"list.txt, line 3: 'please remove my cat' is no entry"),
        (f"# {SHA}\n\n", "list.txt has no entry"),
        ("", "list.txt has no entry"),
        ("sha256,date\n", "list.txt has no entry"),
        (f"{SHA[:-1]}\n", "line 1"),
        ('{"sha256": "abc"}', r"line 1: sha256 'abc'; expected 64"),
        (f'{{"sha256": "{SHA}", "reason": "mood"}}', r"line 1: reason 'mood' is unknown"),
        ('{"note": "nothing"}', "line 1"),
    ],
)
def test_what_is_not_understood_is_an_error_that_names_the_line(content: str, what: str, tmp_path: Path):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(ConfigError, match=what):
        list(read_entries([tmp_path / "list.txt"], "ingest.takedown"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_list_is_read_in_utf_8_and_utf_16(encoding: str, tmp_path: Path):
    (tmp_path / "l.txt").write_bytes(f"sha256,reason\r\n{SHA},privacy\r\nshop:größe.jpg\r\n".encode(encoding))
    entries = list(read_entries([tmp_path / "l.txt"], "ingest.takedown"))
    assert [(e.value, e.reason) for e in entries] == [(SHA, "privacy"), ("shop:größe.jpg", "request")]
    (tmp_path / "l.txt").write_bytes(b"\n\xff\xfe\xfd cat\n" + b"shop:gr\xf6\xdfe.jpg")
    with pytest.raises(ConfigError, match="line 2: bytes that are not utf-8"):
        list(read_entries([tmp_path / "l.txt"], "ingest.takedown"))


def test_each_entry_matches_what_it_names_and_near_hits_are_left_to_a_person():
    rows = [
        image("id1", "shop:1.jpg", 0xF0),
        image("id2", "shop:2, b.jpg", source=SHA),
        image("id3", "web:https://Example.org:443/3.jpg"),
        image("id4", "bucket:x/4.jpg"),
        image("id5", "old:5.jpg"),
        image("id6", "shop:6.jpg", 0xFFFF << 40 | 0xFF),
        image("id7", "shop:7.jpg", (0xFFFF << 40 | 0xFF) ^ 0b1111111111, bytes([200] * 192)),
    ]
    lines = [
        "shop:1.jpg",
        SHA,
        "shop:2, b.jpg",
        "http://example.org/3.jpg",
        "s3://photos/week/x/4.jpg",
        "source:old",
        f"{0xFFFF << 40 | 0xFF:016x}",
        "c3" * 32,
    ]
    takedown = TakedownList(parse_lines(lines, "l"), {"bucket": "s3://photos/week/", "shop": "/data/shop"})
    matches = takedown.match(rows, LIMITS)
    assert matches.entries == {"id1": 0, "id2": 1, "id3": 3, "id4": 4, "id5": 5, "id6": 6}
    assert {n: [tuple(hit) for hit in hits] for n, hits in matches.near.items()} == {6: [("id7", 10)]}


@pytest.mark.parametrize(
    ("line", "uri", "others"),
    [
        ("https://example.org/my photo.jpg", "web:https://example.org/my photo.jpg", ["web:https://example.org/photo"]),
        ("https://example.org/my photo.jpg", "web:https://example.org/my%20photo.jpg", []),
        ("https://example.org/my%20photo.jpg please, 2026-01-15", "web:https://example.org/my photo.jpg", []),
        ("https://example.org/größe.jpg", "web:https://example.org/gr%C3%B6%C3%9Fe.jpg", []),
        ("https://example.org/1.jpg  2026-01-15", "web:https://example.org/1.jpg", ["web:https://example.org/2.jpg"]),
        ("s3://bucket/in/my photo, 2.jpg", "s3://bucket/in/my photo, 2.jpg", []),
        ("uri:photos/1.jpg", "uri:photos/1.jpg", ["uri:photos/2.jpg"]),
        ("url:photos/1.jpg", "url:photos/1.jpg", ["url:photos/2.jpg"]),
        ("url:photos/1, b.jpg", "url:photos/1, b.jpg", []),
        ("url:https://example.org/1.jpg", "web:https://example.org/1.jpg", []),
        ("source:1.jpg", "source:1.jpg", ["source:2.jpg"]),
        ("source:my photo.jpg", "source:my photo.jpg", ["source:photo.jpg"]),
        ("image_id:1.jpg", "image_id:1.jpg", []),
        ("id:1.jpg", "id:1.jpg", []),
    ],
)
def test_blanks_in_addresses_and_sources_that_are_called_as_columns_are(line: str, uri: str, others: list[str]):
    entries = parse_lines([line], "letter")
    copied = parse_lines([entry.to_json() for entry in entries], "copy")
    for found in (TakedownList(entries), TakedownList(copied)):
        assert found.find_exact((), uri) == 0
        assert [found.find_exact((), other) for other in others] == [None] * len(others)


def test_a_blocklist_is_read_in_utf_16_too_and_one_without_an_entry_is_no_empty_one(tmp_path: Path):
    (tmp_path / "b.txt").write_bytes(f"# by Gr\u00f6\u00dfe\n{SHA}  a person asked\n".encode("utf-16"))
    assert read_lists("blocked", "ingest.blocklists", [tmp_path / "b.txt"]).sha256s == {SHA}
    (tmp_path / "b.txt").write_bytes(f"Gr\u00f6\u00dfe {SHA}\n".encode("latin-1"))
    assert read_lists("blocked", "ingest.blocklists", [tmp_path / "b.txt"]).sha256s == {SHA}
    (tmp_path / "b.txt").write_text("# nobody asked yet\n")
    assert not read_lists("blocked", "ingest.blocklists", [tmp_path / "b.txt"]).sha256s
    (tmp_path / "b.txt").write_text("remove my cat, please\n")
    with pytest.raises(ConfigError, match="ingest.blocklists: .*b.txt has no entry"):
        read_lists("blocked", "ingest.blocklists", [tmp_path / "b.txt"])


def test_a_line_of_json_with_half_a_character_or_no_thumbnail_is_an_error_that_names_it():
    """JSON can write half a pair of surrogates, and no file name or address holds it."""
    with pytest.raises(ConfigError, match=r"list, line 2: half of a pair of surrogates"):
        parse_lines([SHA, '{"url": "https://example.org/\\ud800.jpg"}'], "list")
    with pytest.raises(ConfigError, match=r"line 1: thumbnail 'zz.*expected 384 hexadecimal digits, or none"):
        parse_lines(['{"phash": "00000000000000f0", "thumbnail": "' + "zz" * 192 + '"}'], "list")
    (entry,) = parse_lines(['{"url": "https://example.org/\\ud83d\\ude00.jpg"}'], "list")
    assert TakedownList([entry]).find_exact((), "web:https://example.org/\N{GRINNING FACE}.jpg") == 0
