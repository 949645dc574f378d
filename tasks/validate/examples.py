"""Example rows for a gate's mail: failing rows, dropped copies and unreadable files, captions that fit worst."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tasks.errors import DataError
from tasks.reasons import COPY_REASONS, UNREADABLE_REASONS
from tasks.store import Store
from tasks.validate.rows import Row

EXAMPLES = 5
IMAGE_ID = re.compile(r"\b[0-9a-f]{64}\b")
SHOWN_COLUMNS = ("source_uri", "caption", "text", "similarity_of_miners", "lowest_judge_target")


def dropped_examples(store: Store, batch: str, column: str) -> list[dict[str, Any]]:
    """Files that ingest dropped in this run and that count in a figure, with the images that their detail names.

    Args:
        store: of the run.
        batch: the run's.
        column: the figure: `unreadable_share` wants unreadable files, any other wants copies.
    """
    reasons = UNREADABLE_REASONS if column == "unreadable_share" else COPY_REASONS
    return [
        {
            "key": row["key"],
            "image_ids": IMAGE_ID.findall(row["detail"] or ""),
            "reason": row["reason"],
            "detail": row["detail"],
        }
        for row in store.read_dropped("ingest", batch).to_pylist()
        if row["reason"] in reasons
    ]


def worst_captions(store: Store, batch: str) -> list[dict[str, Any]]:
    """New images by how well their caption fits, the worst first: cosine of the image's and the caption's vector.

    The cosine is None where two models made the vectors, or one is missing. Empty before the vectors exist.
    """
    images = store.read_table("images", ["image_id", "shard"], batch).to_pylist()
    captions = store.captions()
    shards = sorted({row["shard"] for row in images})
    try:
        image_ids, image_vectors, revision = store.read_embeddings("semantic", shards)
        text_ids, text_vectors, text_revision = store.read_embeddings("caption", shards)
    except (DataError, OSError):
        return []
    cosines = {row["image_id"]: math.nan for row in images}
    if revision == text_revision and image_vectors.shape[1] == text_vectors.shape[1]:
        text_row = {image_id: n for n, image_id in enumerate(text_ids)}
        for n, image_id in enumerate(image_ids):
            if image_id in text_row and image_id in cosines:
                text_vector = text_vectors[text_row[image_id]].astype("float64")
                cosines[image_id] = float(image_vectors[n].astype("float64") @ text_vector)
    ordered = sorted(cosines, key=lambda image_id: (math.isnan(cosines[image_id]), cosines[image_id], image_id))
    return [
        {
            "key": image_id,
            "image_ids": [image_id],
            "caption": captions.get(image_id, ""),
            "cosine": None if math.isnan(cosines[image_id]) else round(cosines[image_id], 4),
        }
        for image_id in ordered
    ]


def row_examples(rows: Iterable[Row], key: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The first rows with these keys: the images that they name and what a person reads first.

    Args:
        rows: new rows, as tasks/validate/rows.py makes them.
        key: the table's key column.
        keys: keys of the rows wanted; the first EXAMPLES count.
    """
    wanted = set(keys[:EXAMPLES])
    out: list[dict[str, Any]] = []
    for row in rows:
        if str(row[key]) in wanted and len(out) < EXAMPLES:
            image_ids = [row[c] for c in ("image_id", "query_image_id", "target_image_id") if row.get(c)]
            columns = {c: row[c] for c in SHOWN_COLUMNS if row.get(c) is not None}
            out.append({"key": str(row[key]), "image_ids": image_ids, **columns})
    return out
