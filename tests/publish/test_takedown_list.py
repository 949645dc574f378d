"""The list of a takedown's own run, which reads no source."""

from pathlib import Path

import pytest

from tasks.fingerprints.takedown_list import TakedownList, parse_lines, read_entries
from tasks.publish.takedown_list import add_to_list, all_entries, with_source_uris
from tests.support.parameters import params_with


def test_an_address_in_a_bucket_names_its_image_without_the_sources():
    raw = {"ingest": {"sources": [
        {"name": "shop", "path": "s3://bucket/in/"}, {"name": "other", "path": "s3://bucket/in2"},
        {"name": "files", "path": "/data/files"}, "a folder",
    ]}}  # fmt: skip
    lines = ["s3://bucket/in/photos/1,2.jpg", "https://example.org/1.jpg", "shop:3.jpg"]
    entries = with_source_uris(parse_lines(lines, "letter"), raw)
    entries = [parse_lines([entry.to_json()], "copy")[0] for entry in entries]
    found = TakedownList(entries)
    uris = ["shop:photos/1,2.jpg", "web:https://example.org/1.jpg", "shop:3.jpg", "other:photos/1,2.jpg", "shop:2.jpg"]
    assert [found.find_exact((), uri) for uri in uris] == [0, 1, 2, None, None]
    assert entries[1:] == parse_lines([e.to_json() for e in parse_lines(lines, "letter")[1:]], "copy")


@pytest.mark.parametrize(
    "content", [b"", b"\n# nobody has asked yet\n", b"sha256,date\n", "shop:gr\u00f6.jpg".encode("utf-16")]
)
def test_an_empty_list_of_the_deployment_stops_nothing_and_takes_what_comes(tmp_path: Path, content: bytes):
    path = tmp_path / "takedown.jsonl"
    path.write_bytes(content)
    before = all_entries(params_with(), path)
    assert len(before) == (b"\xff" in content[:1])
    entries = parse_lines(["a" * 64, "https://example.org/my photo.jpg"], "letter")
    assert (add_to_list(path, entries), add_to_list(path, entries)) == (2, 0)
    assert [entry.value for entry in all_entries(params_with(), path)] == [e.value for e in [*before, *entries]]
    assert [(e.kind, e.spellings) for e in read_entries([path], "x")][-2:] == [(e.kind, e.spellings) for e in entries]
