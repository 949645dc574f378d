"""List the files of any image source, chosen by its `kind` or path.

    folder   a folder, with captions.csv or captions.parquet        tasks/sources/folder.py
    s3       s3://bucket/prefix, the same in a bucket               tasks/sources/s3.py
    tars     WebDataset tars, local or in a bucket                  tasks/sources/tars.py
    table    Parquet, CSV or JSONL tables of URLs with captions     tasks/sources/tables.py

Every source lists its files in one reproducible order and in constant memory, and reads each under a byte limit. What a
source delivers, and why it rejects a file: tasks/sources/files.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tasks.config import SourceConfig
from tasks.sources.counts import ListingCounts
from tasks.sources.files import SourceFile
from tasks.sources.folder import list_folder
from tasks.sources.s3 import list_s3
from tasks.sources.tables import list_table
from tasks.sources.tars import list_tars


def never_known(fingerprint: str) -> bool:
    """The default of `list_files`: no earlier batch exists."""
    return False


def list_files(
    source: SourceConfig, is_known: Callable[[str], bool] = never_known, counts: ListingCounts | None = None
) -> Iterator[SourceFile]:
    """All files of a source, in an order that depends on the source alone.

    Args:
        source: an entry of ingest.sources.
        is_known: whether an earlier batch has a row with this fingerprint. A tar whose last member is known is skipped
            as a whole.
        counts: where captions and rows of tables are counted; they are complete when the listing has ended.
    Raises:
        ConfigError: the folder, bucket or table does not exist.
        DataError: tables without the columns that they must have; captions or rows that are not accounted for (a bug).
        TransientError: the storage fails; run the stage again.
    """
    counts = ListingCounts() if counts is None else counts
    if source.kind_of_path == "tars":
        yield from list_tars(source, is_known, counts)
    elif source.kind_of_path == "table":
        yield from list_table(source, counts)
    elif source.path.startswith("s3://"):
        yield from list_s3(source, is_known, counts)
    else:
        yield from list_folder(source, counts)
    counts.check()
