"""Examples for a gate's mail: worst rows, copies, worst captions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.errors import DataError
from tasks.reasons import COPY_REASONS, UNREADABLE_REASONS
from tasks.store import Store
from tasks.validate.rows import EXAMPLES


def copies(store: Store, batch: str) -> list[dict[str, Any]]:
    """Dropped copies of this run, with the kept image that each repeats when its detail names one."""
    rows = store.read_dropped("ingest", batch).to_pylist()
    wanted = [r for r in rows if r["reason"] in (*COPY_REASONS, *UNREADABLE_REASONS)]
    return [
        {
            "key": r["key"],
            "image_ids": re.findall(r"\b[0-9a-f]{64}\b", r["detail"] or ""),
            "reason": r["reason"],
            "detail": r["detail"],
        }
        for r in wanted
    ]


def worst_captions(store: Store, batch: str, new_images: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """New images whose caption fits worst, by the cosine of the two vectors when one model made both kinds."""
    captions = store.captions()
    shards = sorted({r["shard"] for r in new_images})
    try:
        image_ids, images, revision = store.read_embeddings("semantic", shards)
        text_ids, texts, text_revision = store.read_embeddings("caption", shards)
    except (DataError, OSError):
        return []
    scores = {r["image_id"]: math.nan for r in new_images}
    if revision == text_revision and images.shape[1] == texts.shape[1]:
        place = {i: n for n, i in enumerate(text_ids)}
        for n, i in enumerate(image_ids):
            if i in place and i in scores:
                scores[i] = float(images[n].astype("float64") @ texts[place[i]].astype("float64"))
    ordered = sorted(scores, key=lambda i: (math.isnan(scores[i]), scores[i], i))
    return [
        {
            "key": i,
            "image_ids": [i],
            "caption": captions.get(i, ""),
            "cosine": None if math.isnan(scores[i]) else round(scores[i], 4),
        }
        for i in ordered
    ]


def rows_examples(rows: Iterable[Mapping[str, Any]], key: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these ids, with the images that they name and what a person reads first."""
    wanted = set(keys[:EXAMPLES])
    out: list[dict[str, Any]] = []
    for r in rows:
        if str(r[key]) in wanted and len(out) < EXAMPLES:
            image_ids = [r[c] for c in ("image_id", "query_image_id", "target_image_id") if r.get(c)]
            shown = {
                c: r[c]
                for c in ("source_uri", "caption", "text", "similarity_of_miners", "lowest_judge_target")
                if r.get(c) is not None
            }
            out.append({"key": str(r[key]), "image_ids": image_ids, **shown})
    return out
