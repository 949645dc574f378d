"""Tables of URLs with captions: Parquet, CSV or JSONL (also .gz, .zst), as DataComp, Recap-DataComp and LAION publish.

Columns are found by their usual names (url or URL; caption, re_caption or TEXT ...) or by the source's `columns`. Rows
are listed in the table's order, a few thousand in memory; the first row of a URL wins (hashes of the others are kept on
disk). A URL that an earlier batch has taken is not downloaded again. Where the table states a file's sha256, other
bytes are rejected as `changed`. Rows without a URL, and tables in an unsupported archive format, are rejected as
`not_a_picture`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from tasks.config import PACKED_TABLES, TABLE_SUFFIXES, SourceConfig
from tasks.sources import s3
from tasks.sources.files import Content, FileRejected, Metadata, SourceFile, make_source_file
from tasks.sources.folder import find_local_files
from tasks.sources.metadata import SeenKeys, TableFormat, parse_metadata, read_rows
from tasks.sources.web.fetcher import Fetcher
from tasks.sources.web.hosts import FetchConfig


@functools.cache
def shared_fetcher(config: FetchConfig) -> Fetcher:
    """One fetcher per configuration and process: its request limits per host then hold over all sources together."""
    return Fetcher(config)


def fetch_config(source: SourceConfig) -> FetchConfig:
    """Download limits of a source."""
    return FetchConfig(
        contact=source.contact.strip(),
        robots=source.robots,
        delay_s=source.delay_s,
        per_host=source.per_host,
        deadline_s=source.deadline_s,
        max_wait_s=source.max_wait_s,
        allow_hosts=tuple(source.allow_hosts),
    )


def download(fetcher: Fetcher, url: str, sha256: str | None, limit_bytes: int) -> Content:
    """The URL's bytes, verified against the table's sha256 where it states one.

    Raises:
        FileRejected: see Fetcher.fetch; `changed`, when the sha256 differs.
    """
    content = fetcher.fetch(url, limit_bytes)
    if sha256 is not None and (actual := hashlib.sha256(content).hexdigest()) != sha256:
        raise FileRejected("changed", f"sha256 is {actual}, the table says {sha256}", robots=content.robots)
    return content


def find_tables(source: SourceConfig) -> Iterator[tuple[str, AbstractContextManager[Path] | None]]:
    """(name, context manager of a local path) of the source's tables, by name; None for an unsupported archive."""
    if source.path.startswith("s3://"):
        location = s3.parse_location(source)
        for item in s3.list_objects(location):
            if item.key.endswith((*TABLE_SUFFIXES, *PACKED_TABLES)):
                is_packed = item.key.endswith(PACKED_TABLES)
                yield location.path_inside(item), None if is_packed else s3.local_copy(location, item)
    else:
        for name, path in find_local_files(source, (*TABLE_SUFFIXES, *PACKED_TABLES)):
            yield name, None if name.endswith(PACKED_TABLES) else nullcontext(path)


def list_table(source: SourceConfig) -> Iterator[SourceFile]:
    """One file per URL of the source's tables.

    Raises:
        ConfigError: no table, or a bucket without access.
        DataError: an unreadable table, or one without a URL column.
    """
    fetcher, seen = shared_fetcher(fetch_config(source)), SeenKeys()
    for name, local in find_tables(source):
        if local is None:
            yield make_source_file(source, name, "packed", Metadata()).rejected(
                "not_a_picture", "a packed table; pack it by gzip or Zstandard, or unpack it"
            )
            continue
        with local as path:
            yield from _list_rows(source, name, path, fetcher, seen)


def _list_rows(source: SourceConfig, name: str, path: Path, fetcher: Fetcher, seen: SeenKeys) -> Iterator[SourceFile]:
    """One file per new URL of one table, and a rejected one per row without a URL."""
    for number, row in enumerate(read_rows(path, TableFormat(source, "url", name))):
        url, stated = row["url"], row.get("sha256")
        if not isinstance(url, str) or not url.strip():
            yield make_source_file(source, f"{name}#{number}", f"row {number}", parse_metadata(row)).rejected(
                "not_a_picture", "a row without a URL"
            )
            continue
        url = url.strip()
        if seen.add(url):
            is_sha256 = isinstance(stated, str) and re.fullmatch(r"[0-9a-fA-F]{64}", stated)
            sha256 = str(stated).lower() if is_sha256 else None
            file = make_source_file(source, url, sha256 or "url", parse_metadata(row))
            yield replace(file, is_remote=True, reader=partial(download, fetcher, url, sha256))
