"""Tables of URLs with captions: Parquet, CSV or JSONL (also .gz, .zst) as DataComp, Recap-DataComp and LAION export
them.

Column names by use (url or URL; caption, re_caption or TEXT ...), or as the source's `columns` says. Rows in the
table's order, a few thousand in memory; the first row of a URL counts (the others are kept on disk as hashes only). A
URL that an earlier batch has seen is not fetched again. Where the table states a sha256 of the file, other bytes are
refused as changed.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tasks.config import PACKED_TABLES, TABLE_SUFFIXES, SourceConfig
from tasks.sources import s3
from tasks.sources.files import Content, Label, Refused, SourceFile
from tasks.sources.folder import labelled
from tasks.sources.labels import Once, label_of, rows_of
from tasks.sources.tars import local_paths
from tasks.sources.web.fetcher import FetchConfig, Fetcher


@functools.cache
def fetcher_of(config: FetchConfig) -> Fetcher:
    """One fetcher for all sources of the process that are fetched alike, so that hosts are spared by all of them
    together.
    """
    return Fetcher(config)


def fetch_config(source: SourceConfig) -> FetchConfig:
    """How a source is fetched from."""
    return FetchConfig(
        source.contact.strip(),
        source.robots,
        source.delay_s,
        source.per_host,
        source.deadline_s,
        source.max_wait_s,
        tuple(source.allow_hosts),
    )


def fetched(fetcher: Fetcher, url: str, sha256: str | None, limit_bytes: int) -> Content:
    """The URL's bytes, if they are those of the table.

    Raises:
        Refused: see Fetcher.fetch; changed, when the sha256 is another.
    """
    content = fetcher.fetch(url, limit_bytes)
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise Refused("changed", f"sha256 is {found}, the table says {sha256}", robots=content.robots)
    return content


@contextmanager
def _as_is(path: Path) -> Iterator[Path]:
    yield path


def tables_of(source: SourceConfig) -> Iterator[tuple[str, Any]]:
    """(name, context manager of a local path) of the source's tables, by name; None for one that is packed in a way
    that is not read.
    """
    if source.path.startswith("s3://"):
        place = s3.place_of(source)
        for found in s3.objects(place):
            if found.key.endswith((*TABLE_SUFFIXES, *PACKED_TABLES)):
                yield place.inside(found), None if found.key.endswith(PACKED_TABLES) else s3.local_copy(place, found)
    else:
        for name, path in local_paths(source, (*TABLE_SUFFIXES, *PACKED_TABLES)):
            yield name, None if name.endswith(PACKED_TABLES) else _as_is(path)


def list_table(source: SourceConfig) -> Iterator[SourceFile]:
    """A file per URL of the source's tables.

    Raises:
        ConfigError: no table, or a bucket that may not be read.
        DataError: a table that cannot be read, or without a column of URLs.
    """
    fetcher, once = fetcher_of(fetch_config(source)), Once()
    for name, local in tables_of(source):
        if local is None:
            yield labelled(source, name, "packed", Label()).refused(
                "not_a_picture", "a packed table; pack it by gzip or Zstandard, or unpack it"
            )
            continue
        with local as path:
            for number, row in enumerate(rows_of(path, source, key="url", where=name)):
                url, stated = row["url"], row.get("sha256")
                if not isinstance(url, str) or not url.strip():
                    yield labelled(source, f"{name}#{number}", f"row {number}", label_of(row)).refused(
                        "not_a_picture", "a row without a URL"
                    )
                    continue
                url = url.strip()
                if once.is_new(url):
                    sha256 = (
                        stated.lower() if isinstance(stated, str) and re.fullmatch(r"[0-9a-fA-F]{64}", stated) else None
                    )
                    file = labelled(source, url, sha256 or "url", label_of(row))
                    yield replace(file, is_remote=True, reader=partial(fetched, fetcher, url, sha256))
