"""The list of a takedown's own run, which reads no source."""

from tasks.fingerprints.takedown_list import TakedownList, parse_lines
from tasks.publish.takedown_list import with_source_uris


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
