"""Vectors of captions that this run wrote anew: a text encoder's earlier shards follow them.

What was mined by the old captions stays mined: a neighbour is a proposal, and the judge has seen what came of it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq

from tasks.renewal.plan import read_plan
from tasks.store import Store

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]  # ids -> vectors, and which of them are usable


def shards_to_follow(store: Store, index: str, images: Mapping[str, Sequence[str]], batch: str) -> dict[str, list[str]]:
    """Stem of each earlier shard with renewed captions -> its images, in the table's order.

    Args:
        store: of the worktree.
        index: of the encoder.
        images: columns image_id, shard, batch.
        batch: the run's, whose shards are encoded with the new captions anyway.
    """
    plan = read_plan(store, "recaption")
    if plan is None or not plan.units:
        return {}
    renewed, embedded = set(plan.units), set(store.embedded_shards(index))
    shards: dict[str, list[str]] = {}
    for image_id, shard, of_batch in zip(images["image_id"], images["shard"], images["batch"], strict=True):
        if of_batch != batch:
            shards.setdefault(shard.rpartition(".")[0], []).append(image_id)
    return {stem: ids for stem, ids in sorted(shards.items()) if stem in embedded and not renewed.isdisjoint(ids)}


def encode_again(store: Store, index: str, stem: str, ids: Sequence[str], usable: Sequence[str], encode: Encode) -> int:
    """Give a shard's images with renewed captions new vectors; done once in a run. Returns how many were encoded.

    The old vectors are kept beside until the new ones are written: a rerun after a crash starts from them.

    Args:
        store: of the worktree.
        index: of the encoder.
        stem: of the shard.
        ids: its images.
        usable: those with a caption.
        encode: of the encoder.
    """
    marker = store.folder(".run", "renew", "captions", index.replace("/", "-"), stem)
    if marker.exists():
        return 0
    folder, plan = store.folder("data", "embeddings", index), read_plan(store, "recaption")
    renewed = set(plan.units if plan else ()) & set(ids)
    kept_old = marker.with_suffix(".old.npz")
    if not kept_old.exists():
        table = pq.read_table(folder / f"{stem}.parquet")
        revision = (table.schema.metadata or {}).get(b"revision", b"").decode()
        old_vectors = np.load(folder / f"{stem}.npy", allow_pickle=False)
        content = io.BytesIO()
        np.savez(content, ids=table.column("image_id").to_pylist(), vectors=old_vectors, revision=revision)
        store.write_bytes(kept_old, content.getvalue())
    with np.load(kept_old, allow_pickle=False) as saved:
        old_ids, old, revision = saved["ids"].tolist(), saved["vectors"], str(saved["revision"])
    again = [image_id for image_id in usable if image_id in renewed]
    vectors, is_usable = encode(again)
    rows = {image_id: old[n] for n, image_id in enumerate(old_ids) if image_id not in renewed}
    rows |= {image_id: vectors[n] for n, image_id in enumerate(again) if is_usable[n]}
    kept = [image_id for image_id in ids if image_id in rows]
    width = vectors.shape[1] if len(again) else old.shape[1]
    stacked = np.stack([rows[image_id] for image_id in kept]) if kept else np.zeros((0, width), np.float16)
    for codes in store.folder("data", "neighbours", index, "codes").glob(f"*/{stem}.npy"):
        codes.unlink()
    store.write_embeddings(index, f"{stem}.tar", revision, kept, stacked)
    store.write_bytes(marker, b"")
    kept_old.unlink()
    return len(again)
