"""Withdraw the vectors of images that were taken down."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow.parquet as pq

from tasks.store import Store


def withdraw_vectors(store: Store, encoder: str, image_ids: Iterable[str]) -> int:
    """Rewrite an encoder's shards without the vectors of some images. Returns the vectors removed, a count.

    A shard whose rewriting was cut off between its two files (vectors, then ids) is finished.

    Args:
        store: to read and write.
        encoder: the encoder's role.
        image_ids: images whose vectors go.
    """
    count, removed = 0, set(image_ids)
    for stem in store.embedded_shards(encoder):
        folder = store.folder("data", "embeddings", encoder)
        table = pq.read_table(folder / f"{stem}.parquet")
        ids = table.column("image_id").to_pylist()
        rows = [n for n, i in enumerate(ids) if i not in removed]
        if len(rows) == len(ids):
            continue
        vectors = np.load(folder / f"{stem}.npy", mmap_mode="r", allow_pickle=False)
        if len(vectors) != len(rows):  # else they were removed before the run was cut off
            vectors = vectors[rows]
        revision = (table.schema.metadata or {}).get(b"revision", b"").decode()
        store.write_embeddings(encoder, f"{stem}.tar", revision, [ids[n] for n in rows], vectors)
        count += len(ids) - len(rows)
    return count
