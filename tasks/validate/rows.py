"""Rows of each table as the gates check them, with relations to other tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Table = Literal["images", "pairs", "triplets"]
KEYS: dict[str, str] = {"images": "image_id", "pairs": "pair_id", "triplets": "triplet_id"}
# whose report and drops belong to the table
STAGE_BEFORE: dict[str, str] = {"images": "ingest", "pairs": "select", "triplets": "judge"}
EXAMPLES = 5


def images_rows(rows: Sequence[Mapping[str, Any]], known_ids: set[str]) -> list[dict[str, Any]]:
    """New images: the table's columns but the thumbnail, and whether an earlier version holds the image."""
    return [
        {**{k: v for k, v in r.items() if k != "thumbnail"}, "is_known_before": r["image_id"] in known_ids}
        for r in rows
    ]


def _relations(row: Mapping[str, Any], images: set[str]) -> dict[str, Any]:
    """What pairs and triplets have in common: the images that they name."""
    negatives = row["negative_image_ids"] or []
    named = {row["query_image_id"], row["target_image_id"], *negatives}
    return {
        "query_image_id": row["query_image_id"],
        "target_image_id": row["target_image_id"],
        "is_query_first_negative": bool(negatives) and negatives[0] == row["query_image_id"],
        "is_target_a_negative": row["target_image_id"] in negatives,
        "are_images_known": named <= images,
    }


def pairs_rows(rows: Sequence[Mapping[str, Any]], known_ids: set[str], images: set[str]) -> list[dict[str, Any]]:
    """New pairs, one flat mapping each. `images` are the ids of all images."""
    out = []
    for r in rows:
        mined_by = r["mined_by"] or []
        scores = [r[f"similarity_{e}"] for e in mined_by if r.get(f"similarity_{e}") is not None]
        out.append(
            {
                "pair_id": r["pair_id"],
                "is_known_before": r["pair_id"] in known_ids,
                **_relations(r, images),
                "is_same_image": r["query_image_id"] == r["target_image_id"],
                "encoders": len(mined_by),
                "rank": r["rank"],
                "similarity_of_miners": max(scores, default=math.nan),
            }
        )
    return out


def triplets_rows(rows: Sequence[Mapping[str, Any]], known_ids: set[str], images: set[str]) -> list[dict[str, Any]]:
    """New triplets, one flat mapping each. `images` are the ids of all images."""
    out = []
    for r in rows:
        texts, target, negative = r["instructions"] or [], r["judge_target"] or [], r["judge_negative"] or []
        out.append(
            {
                "triplet_id": r["triplet_id"],
                "is_known_before": r["triplet_id"] in known_ids,
                **_relations(r, images),
                "instructions_count": len(texts),
                "are_instructions_distinct": len({t.strip().lower() for t in texts}) == len(texts),
                "shortest_instruction_chars": min((len(t.strip()) for t in texts), default=0),
                "lowest_judge_target": min(target, default=math.nan),
                "are_scores_whole": len(target) == len(texts)
                and len(negative) == len(r["negative_image_ids"] or [])
                and all(s is not None and 0 <= s <= 1 for s in [*target, *negative]),
                "prompt_sha256": r["prompt_sha256"],
                "captioner_revision": r["captioner_revision"],
                "judge_revision": r["judge_revision"],
                "text": " | ".join(texts)[:300],
            }
        )
    return out
