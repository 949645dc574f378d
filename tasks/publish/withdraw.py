"""What a withdrawal means for publishing: exports follow the triplets, and nothing withdrawn may be left anywhere."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from tasks.errors import DataError
from tasks.fingerprints.takedown import still_named, withdrawn_ids
from tasks.publish.export import write_embedded
from tasks.store import Store

EXPORT_COLUMNS = ["triplet_id", "negative_image_ids"]


def update_exports(store: Store) -> list[Path]:
    """Write those files of data/export again whose rows are no longer those of table `triplets`.

    A triplet, or one of its negatives, was withdrawn since; a file without a row left is removed. Only ids are read of
    files that are as they should be.

    Returns:
        The files that were changed.
    """
    changed = []
    for path in sorted(store.folder("data", "export").glob("*.parquet")):
        files = exported_files(store, path)
        triplets = store.read(files, "triplets", EXPORT_COLUMNS).to_pylist()
        if pq.read_table(path, columns=EXPORT_COLUMNS).to_pylist() == triplets:
            continue
        changed.append(path)
        if triplets:
            write_embedded(store.read(files, "triplets").to_pylist(), store, path)
        else:
            path.unlink()
    return changed


def exported_files(store: Store, path: Path) -> list[Path]:
    """The files of table `triplets` whose rows a file of data/export holds.

    It bears the name of one of them; in older versions that of a batch, and holds all of the batch.
    """
    of_same_name = store.folder("data", "triplets", path.name)
    if path.stem.rpartition("-")[2].isdecimal() and "-" in path.stem:
        return [of_same_name] if of_same_name.exists() else []
    return store.batch_files("triplets", path.stem)


def require_withdrawn(store: Store, batch: str) -> int:
    """Look through all files below data for the images that a batch withdrew; returns how many images that are.

    Raises:
        DataError: a file still names one; it must not be published.
    """
    ids = withdrawn_ids(store, batch)
    if faults := still_named(store, ids):
        raise DataError(
            f"takedown: {len(faults)} files still hold a withdrawn image, first {faults[:5]}; expected none; "
            "clear the run's stages from ingest on, so that each removes its rows; if it stays, report it with the log"
        )
    return len(ids)
