"""Read a version: every triplet with its images, streamed; one read of its tar file per image.

    from tasks.publish.readers import with_images
    for row in with_images("my-clone"):
        row["instructions"], row["query_image"], row["target_image"], row["negative_images"]  # PIL images, RGB

Reads data/triplets, data/images and data/shards of a clone after `dvc pull`. Needs pyarrow and Pillow, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.store import Store


def triplets(folder: Path | str, rows_at_once: int = 256) -> Iterator[dict[str, Any]]:
    """Every triplet of a version as a mapping of its columns, in order of file name; few rows in memory at a time."""
    import pyarrow.parquet as pq

    files = Store(folder).table_files("triplets")
    if not files:
        raise DataError(f"{folder}: no data/triplets/*.parquet; run `dvc pull` in the clone first")
    for path in files:
        for block in pq.ParquetFile(path).iter_batches(rows_at_once):
            yield from block.to_pylist()


def with_images(folder: Path | str, *, negatives: bool = True) -> Iterator[dict[str, Any]]:
    """Stream every triplet joined with its images.

    Args:
        folder: a clone of the dataset after `dvc pull`.
        negatives: also read the hard negatives' images (negative 0 is the query image).
    Yields:
        the triplet's columns, and `query_image`, `target_image` (PIL, RGB), `negative_images` (a list in the order of
        `negative_image_ids`).
    Raises:
        DataError: an image or a table is missing or cut short.
    """
    store = Store(folder)
    for row in triplets(folder):
        query = store.read_image(row["query_image_id"])
        joined = {**row, "query_image": query, "target_image": store.read_image(row["target_image_id"])}
        if negatives:
            joined["negative_images"] = [
                query if i == row["query_image_id"] else store.read_image(i) for i in row["negative_image_ids"]
            ]
        yield joined
