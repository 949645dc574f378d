"""Where images come from: every source lists its files in one order and in constant memory, and reads them under a
limit.

    folder   a folder, with captions.csv or captions.parquet
    s3       s3://bucket/prefix, the same in a bucket
    tars     WebDataset tars, local or in a bucket
    table    Parquet, CSV or JSONL tables of URLs with captions

What a source offers, how it is read and why it is refused: tasks/sources/files.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tasks.config import SourceConfig
from tasks.sources.files import REASONS, SUFFIXES, Content, Label, Refused, SourceFile, cleaned_text
from tasks.sources.folder import list_folder

__all__ = ["REASONS", "SUFFIXES", "Content", "Label", "Refused", "SourceFile", "cleaned_text", "listing"]


def nothing_seen(fingerprint: str) -> bool:
    """No fingerprint was seen before."""
    return False


def listing(source: SourceConfig, is_seen: Callable[[str], bool] = nothing_seen) -> Iterator[SourceFile]:
    """All files of a source, in an order that depends on the source alone.

    Args:
        source: an entry of ingest.sources.
        is_seen: whether an earlier batch has a row of this fingerprint. A tar whose last member was seen is left out as
            a whole.
    Raises:
        ConfigError: there is no such folder, bucket or table.
        DataError: a table that cannot be read.
        TransientError: a store that fails; run the stage again.
    """
    is_bucket = source.path.startswith("s3://")
    if source.kind_of_path == "tars":
        from tasks.sources.tars import list_tars

        yield from list_tars(source, is_seen)
    elif source.kind_of_path == "table":
        from tasks.sources.tables import list_table

        yield from list_table(source)
    elif is_bucket:
        from tasks.sources.s3 import list_s3

        yield from list_s3(source)
    else:
        yield from list_folder(source)
