"""Tables of URLs or of images with captions: Parquet, CSV or JSONL (also .gz, .zst), as DataComp, LAION and Hugging
Face's datasets publish.

Columns are found by their usual names or by the source's `columns` (tasks/sources/columns.py). Rows are listed in the
table's order, a few thousand in memory. Where a row holds the image itself (bytes, or Hugging Face's struct of `bytes`
and `path`), it is a file `<table>#<row>`. Else its URL is the file: the first row of a URL wins (hashes of the others
are kept on disk), and a URL that an earlier batch has taken is not downloaded again. Where the table states a file's
sha256, other bytes are rejected as `changed`.

A row that cannot be read is a rejected file (`unreachable`) that says why; the rest of its table is read. Rows without
a URL or an image, tables without a known column beside others that have one, and tables in an unsupported archive
format, are rejected as `not_a_picture`.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tasks.config import PACKED_TABLES, TABLE_SUFFIXES, SourceConfig
from tasks.errors import ConfigError, DataError
from tasks.sources import s3
from tasks.sources.columns import TableFormat, parse_metadata
from tasks.sources.counts import ListingCounts
from tasks.sources.files import Content, FileRejected, Metadata, SourceFile, make_source_file
from tasks.sources.folder import find_local_files
from tasks.sources.rows import TableRow, read_rows
from tasks.sources.seen import SeenKeys
from tasks.sources.spool import Spool
from tasks.sources.web.fetcher import Fetcher
from tasks.sources.web.hosts import FetchConfig

SPOOL_BYTES = 64 << 20  # of images on disk, before another temporary file is begun


@functools.cache
def shared_fetcher(config: FetchConfig) -> Fetcher:
    """One fetcher per configuration and process: its request limits per host then hold over all sources together."""
    return Fetcher(config)


def fetch_config(source: SourceConfig) -> FetchConfig:
    """Download limits of a source.

    Raises:
        ConfigError: it states no contact.
    """
    if not source.contact.strip():
        raise ConfigError(
            f"ingest.sources: source '{source.name}': a table of URLs needs 'contact': a mail address or page that the "
            "sites can write to; set it in params.yaml or the trigger form"
        )
    return FetchConfig(
        contact=source.contact.strip(),
        robots=source.robots,
        delay_s=source.delay_s,
        per_host=source.per_host,
        deadline_s=source.deadline_s,
        max_wait_s=source.max_wait_s,
        allow_hosts=tuple(source.allow_hosts),
    )


def download(config: FetchConfig, url: str, sha256: str | None, limit_bytes: int) -> Content:
    """The URL's bytes, verified against the table's sha256 where it states one; by the process's fetcher.

    Raises:
        FileRejected: see Fetcher.fetch; `changed`, when the sha256 differs.
    """
    content = shared_fetcher(config).fetch(url, limit_bytes)
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


def list_table(source: SourceConfig, counts: ListingCounts | None = None) -> Iterator[SourceFile]:
    """One file per URL or image of the source's tables.

    Args:
        source: of tables.
        counts: where rows and captions are counted.
    Raises:
        ConfigError: no table, a bucket without access, or URLs without a contact.
        DataError: no table of the source has the columns that it must have.
    """
    lister = _TableLister(source, counts or ListingCounts())
    is_useful, first_error = False, None
    for name, local in find_tables(source):
        if local is None:
            yield make_source_file(source, name, "packed", Metadata()).rejected(
                "not_a_picture", "a packed table; pack it by gzip or Zstandard, or unpack it"
            )
            continue
        try:
            with local as path:
                yield from lister.files(name, path)
            is_useful = True
        except FileRejected as rejected:  # an object that is gone, or that may not be read
            is_useful = True
            yield make_source_file(source, name, "", Metadata()).rejected(
                rejected.reason, rejected.detail, is_lasting=rejected.is_lasting
            )
        except DataError as error:
            first_error = first_error or error
            yield make_source_file(source, name, _digest(str(error)), Metadata()).rejected("not_a_picture", str(error))
    if first_error is not None and not is_useful:
        raise first_error


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


@dataclass
class _TableLister:
    """Lists the rows of one table after the other."""

    source: SourceConfig
    counts: ListingCounts
    seen: SeenKeys = field(default_factory=SeenKeys)
    spool: Spool = field(default_factory=Spool)

    @functools.cached_property
    def fetch_config(self) -> FetchConfig:
        """Download limits of the source; see `fetch_config`."""
        return fetch_config(self.source)

    def files(self, name: str, path: Path) -> Iterator[SourceFile]:
        """One file per new URL or image of one table, and a rejected one per row that has neither or is damaged."""
        for row in read_rows(path, TableFormat(self.source, ("image", "url"), name), self.counts):
            where = f"{name}#{row.number}"
            self.counts.ended_rows += 1
            if row.damage:
                file = make_source_file(self.source, where, _digest(row.damage), Metadata())
                yield file.rejected("unreachable", row.damage, is_lasting=not row.is_end)
                continue
            metadata = parse_metadata(row.values)
            listed = self._list_row(where, row, metadata)
            if metadata.caption:
                self.counts.read += 1
                is_listed = listed is not None and not listed.is_rejected
                why = "its URL was listed before" if listed is None else "a row without an image"
                self.counts.count_caption(where, is_matched=is_listed, why=why)
            elif listed is not None and not listed.is_rejected:
                self.counts.count_file(listed.uri, has_caption=False)
            if listed is not None:
                yield listed

    def _list_row(self, where: str, row: TableRow, metadata: Metadata) -> SourceFile | None:
        """The file of one row; None when its URL was listed before."""
        content, url, stated = (row.values.get(name) for name in ("image", "url", "sha256"))
        if isinstance(content, bytes):
            return self._image_file(where, content, metadata)
        if not isinstance(url, str) or not url.strip():
            return make_source_file(self.source, where, f"row {row.number}", metadata).rejected(
                "not_a_picture", "a row without a URL or the bytes of an image"
            )
        url = url.strip()
        if not self.seen.add(url):
            self.counts.repeated_rows += 1
            return None
        is_sha256 = isinstance(stated, str) and re.fullmatch(r"[0-9a-fA-F]{64}", stated.strip())
        sha256 = str(stated).strip().lower() if is_sha256 else None
        reader = partial(download, self.fetch_config, url, sha256)
        return make_source_file(self.source, url, sha256 or "url", metadata, is_remote=True, reader=reader)

    def _image_file(self, where: str, content: bytes, metadata: Metadata) -> SourceFile:
        """The image that a row holds; it waits on disk."""
        if self.spool.size_bytes > SPOOL_BYTES:
            self.spool = Spool()
        spooled = self.spool.append(content)
        sha256 = hashlib.sha256(content).hexdigest()
        return make_source_file(self.source, where, sha256, metadata, claims_image=True, reader=spooled)
