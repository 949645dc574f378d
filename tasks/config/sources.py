"""Parameters of an image source, one entry of `ingest.sources`, and the file suffixes that tell sources apart."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tasks.config.section import NAME_PATTERN, Section

SourceKind = Literal["folder", "tars", "table"]

TEXT_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
ARROW_TABLES = (".arrow", ".feather")
PACKED_TEXT_TABLES = tuple(f"{table}{packed}" for table in TEXT_TABLES for packed in (".gz", ".zst"))
TABLE_SUFFIXES = (".parquet", *ARROW_TABLES, *TEXT_TABLES, *PACKED_TEXT_TABLES)
# Compressed tars are unpacked to a temporary file; tables of these packings are listed and refused, with one row that
# names the remedy.
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
PACKED_TABLES = tuple(
    f"{table}{packed}" for table in (*TEXT_TABLES, ".parquet") for packed in (".bz2", ".xz", ".zip", ".7z", ".lz4")
)


class SourceConfig(Section):
    """One source of images: a folder, WebDataset tars, or tables of URLs, on disk or on S3."""

    name: str = Field(
        pattern=NAME_PATTERN,
        description="Unique name of the source. Column source_uri holds it, with the file's path inside the source.",
    )
    path: str = Field(
        description="Folder, tar files or tables of URLs or images, local or s3://bucket/prefix. May be a pattern: * "
        "and ? within one folder, ** through folders, [ab], {a,b}, {000..099}. A folder may hold captions.* or "
        "metadata.* (csv, tsv, jsonl, parquet) with columns path, caption, licence, source, and x.txt beside x.jpg.",
    )
    license_code: str = Field(
        "unknown", description="Licence code of images for which the source states none, e.g. CC0-1.0."
    )
    attribution: str = Field("", description="Attribution of images for which the source states none.")
    columns: dict[Literal["path", "url", "image", "caption", "license", "attribution", "sha256"], int | str] = Field(
        default_factory=dict,
        description="Names of the columns in the source's own table, where they differ from the usual names "
        "(listed in tasks/sources/columns.py), e.g. {caption: alt_text}. A number is a position, counted from 0, in a "
        "CSV or TSV without a header, e.g. {url: 1, caption: 0} for CC3M.",
    )
    encoding: str = Field(
        "",
        description="Encoding of text tables and caption files that have no byte-order mark, e.g. cp1252 (Excel in "
        "western Europe), shift_jis. Empty: UTF-8, and UTF-16 where it is evident. A line of other bytes is one "
        "dropped row that says so.",
    )
    kind: SourceKind | None = Field(
        None,
        description="What the source is: folder (of images), tars (WebDataset) or table (of URLs). Empty: decided by "
        "the path's suffix (.tar, .tar.gz, .tgz ...: tars; .parquet, .arrow, .csv, .tsv, .jsonl, .ndjson, the texts "
        "also with .gz or .zst: table). A folder that datasets.save_to_disk has written needs table.",
    )
    endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="Address of the S3 server for an s3:// path. Empty: AWS_ENDPOINT_URL of the environment, else AWS.",
    )
    region: str | None = Field(None, description="S3 region for an s3:// path. Empty: as in the environment.")
    anonymous: bool = Field(
        False,
        description="Send unsigned requests for an s3:// path, as a public bucket takes them, without credentials.",
    )
    requester_pays: bool = Field(
        False, description="Agree to pay for the requests, as the owner of a requester-pays bucket demands."
    )
    contact: str = Field(
        "",
        max_length=200,
        pattern=r"^[ -~]*$",
        description="Mail address or web page of whoever downloads, sent in the User-Agent header. Required for a "
        "table of URLs.",
    )
    robots: bool = Field(
        True,
        description="Obey robots.txt, X-Robots-Tag, robots meta tags and tdm-reservation. Switch off only with the "
        "consent of the sites.",
    )
    delay_s: float = Field(1.0, ge=0, description="Shortest time between two requests to the same host, seconds.")
    per_host: int = Field(2, ge=1, le=64, description="Most simultaneous requests to the same host, a count.")
    deadline_s: float = Field(
        60.0, gt=0, description="Longest time for downloading one file, redirects included, seconds."
    )
    max_wait_s: float = Field(
        60.0,
        ge=0,
        description="Longest Retry-After of a server that is waited for, seconds. After a longer one the file is left "
        "to a later run.",
    )
    allow_hosts: tuple[str, ...] = Field(
        (),
        description="Host names, IP addresses or networks that may be downloaded from although they are not public, "
        "e.g. an intranet. All other private addresses are refused.",
    )

    @property
    def kind_of_path(self) -> SourceKind:
        """`kind`, or what the path's suffix says where it is empty."""
        if self.kind:
            return self.kind
        if self.path.endswith((".tar", *PACKED_TARS)):
            return "tars"
        return "table" if self.path.endswith((*TABLE_SUFFIXES, *PACKED_TABLES)) else "folder"

    @field_validator("encoding")
    @classmethod
    def _require_a_known_encoding(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name if value else ""
        except LookupError:
            raise ValueError(f"'{value}' is no encoding that Python knows; expected e.g. cp1252 or utf-16") from None

    @model_validator(mode="after")
    def _require_a_contact(self) -> SourceConfig:
        """A Parquet or Arrow table may hold the images; whether it needs a contact shows when it is listed."""
        is_text = self.path.endswith((*PACKED_TEXT_TABLES, *TEXT_TABLES, *PACKED_TABLES))
        may_hold_images = not is_text or "image" in self.columns
        if self.kind_of_path == "table" and not self.contact.strip() and not may_hold_images:
            raise ValueError("a table of URLs needs 'contact': a mail address or page that the sites can write to")
        return self


def source_name(path: str) -> str:
    """A name for a source, from the last part of its path, whatever characters that has.

    Accents are left out ('Möbel' gives 'Mobel'); what no letter or digit is left of is called 'source'.
    """
    plain = unicodedata.normalize("NFKD", Path(path).name).encode("ascii", "ignore").decode()
    return re.sub("-+", "-", re.sub("[^A-Za-z0-9_.-]", "-", plain)).strip("-._") or "source"


def expand_sources(value: Any, defaults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sources as mappings, from a path, a mapping as in params.yaml, or a list of either.

    Args:
        value: what the trigger form or the command line gives.
        defaults: `ingest.sources` of params.yaml. A path that one of them has takes that source's licence and
            attribution; any other path becomes a source that is named after its folder.
    """
    known = {source["path"]: source for source in defaults}
    sources = []
    for item in [value] if isinstance(value, str | dict) else value:
        if isinstance(item, str):
            item = known.get(item, {"name": source_name(item), "path": item})
        sources.append(item)
    return sources
