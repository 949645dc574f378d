"""Takedown: what the ledger names leaves every table; each stage cleans its own house when it next runs.

The ledger (`ingest.takedown`) is a list as tasks/fingerprints/hash_lists.py reads them: sha256 of stored bytes (image
ids) or of source bytes, perceptual hashes. embed drops the vectors, mine the neighbours (and looks for the ones that
come up instead), select the pairs and the places as negative (and fills both again), caption and judge the rows of
pairs that are gone.

Earlier versions stay as they were published: a file that names such an image is written anew, aside and renamed, so the
object that DVC keeps of it is not touched. What is done is done: a rerun after a crash finds less to do, and nothing
where nothing is named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import Params
from tasks.fingerprints.hash_lists import read_lists
from tasks.store import Store
from tasks.store.tables import rows_naming

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)
REASON = "taken_down"


def taken_down(params: Params, store: Store) -> set[str]:
    """Image ids that the ledger names, by their stored or their source's bytes or by perceptual hash; empty without a
    ledger.

    Raises:
        ConfigError: the ledger cannot be read. It must not read as an empty one.
    """
    config = params.ingest
    if config.takedown is None:
        return set()
    ledger = read_lists(REASON, "ingest.takedown", [store.folder(config.takedown)])
    images = store.read_table("images", ["image_id", "source_sha256", "phash", "thumbnail"]).to_pydict()
    found = set(ledger.sha256s)
    found |= {
        i for i, source in zip(images["image_id"], images["source_sha256"], strict=True) if source in ledger.sha256s
    }
    for i, phash, thumbnail in (
        zip(images["image_id"], images["phash"], images["thumbnail"], strict=True) if ledger.hashes else ()
    ):
        if ledger.names(
            (),
            int(phash, 16),
            thumbnail,
            confirmed_bits=config.hash_distance_bits,
            thumbnail_max=config.thumbnail_distance,
            alone_bits=config.blocked_distance_bits,
        ):
            found.add(i)
    return found


def withdraw_rows(store: Store, paths: Iterable[Path], schema: str, ids: Iterable[str], columns: Sequence[str]) -> int:
    """Write the files anew without the rows that name one of the ids; those without any stay as they are. Returns the
    rows withdrawn.
    """
    import pyarrow.compute as pc

    count, ids = 0, set(ids)
    for path in paths:
        named = rows_naming(store.read(path, schema, list(columns)), ids, columns)
        if pc.any(named).as_py():
            table = store.read(path, schema)
            count += table.num_rows - store.write(path, table.filter(pc.invert(named)), schema)
    return count
