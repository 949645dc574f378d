"""Weeks of drawn vectors in a store: what benchmarks of mine and select run the stages on."""

from __future__ import annotations

import hashlib

import numpy as np

from tasks.config import Params, load_params
from tasks.store import Store

BATCHES = ("2026.01.04", "2026.01.11")
SHARD = 10_000  # images


def params_of(batch: str, neighbours: int, low: float, high: float) -> Params:
    """params.yaml's defaults with one encoder, no limit a run."""
    params = load_params()
    window = params.mine.windows["semantic"].model_copy(update={"low": low, "high": high})
    changes = {
        "open_run": params.open_run.model_copy(update={"batch": batch, "threads": 1}),
        "embed": params.embed.model_copy(update={"encoders": {"semantic": params.embed.encoders["semantic"]}}),
        "mine": params.mine.model_copy(
            update={"neighbours": neighbours, "windows": {"semantic": window}, "backend": "blocked"}
        ),
        "select": params.select.model_copy(
            update={"pairs_per_batch": None, "pairs_per_query": 2, "pairs_per_target": 3, "nearest_share": 1.0}
        ),
    }
    return params.model_copy(update=changes)


def fill(store: Store, batch: str, vectors: np.ndarray, first: int) -> None:
    """A batch's table of images and its vectors; ids look like the factory's, in no order."""
    ids = [hashlib.blake2b(str(first + i).encode(), digest_size=12).hexdigest() for i in range(len(vectors))]
    shards = [f"{batch}-{i // SHARD:05d}.tar" for i in range(len(ids))]
    rows = [
        {"image_id": i, "batch": batch, "shard": s, "source_uri": "s", "license_code": "x"}
        for i, s in zip(ids, shards, strict=True)
    ]
    store.write(store.table_path("images", batch), rows, "images")
    for start in range(0, len(ids), SHARD):
        store.write_embeddings(
            "semantic", shards[start], "r1", ids[start : start + SHARD], vectors[start : start + SHARD]
        )
