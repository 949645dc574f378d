"""A run's new rows as the gates check them: one flat mapping per row, with its relations to other rows and tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tasks.config import MINER_ROLES

Table = Literal["images", "pairs", "triplets"]
Row = Mapping[str, Any]
KEYS: dict[str, str] = {"images": "image_id", "pairs": "pair_id", "triplets": "triplet_id"}
# The stage whose report and dropped rows belong to the table.
STAGE_BEFORE: dict[str, str] = {"images": "ingest", "pairs": "select", "triplets": "judge"}


@dataclass(frozen=True)
class Context:
    """What a gate must know beside the new rows.

    Attributes:
        known_ids: ids of the table's rows in earlier versions.
        image_ids: ids of all images.
        new_image_ids: ids of the images that this run took in.
        window_roles: encoders that have a window in `mine.windows`.
        path_free_sources: names of sources whose files are no paths of a file system.
        reviewed_ids: ids of the triplets that people accepted against the judge: its thresholds do not bind them.
    """

    known_ids: Collection[str] = frozenset()
    image_ids: frozenset[str] = frozenset()
    new_image_ids: frozenset[str] = frozenset()
    window_roles: frozenset[str] = frozenset(MINER_ROLES)
    path_free_sources: frozenset[str] = frozenset()
    reviewed_ids: frozenset[str] = frozenset()


def leads_outside(source_uri: str, path_free_sources: Collection[str]) -> bool:
    """Whether a file's name inside its source is a path of this machine, or leads out of the source.

    Looks at whole parts of paths, and only where names are paths: `..` in a URL, an object's key that begins with a
    slash and a folder named `a..` are what they are.

    Args:
        source_uri: `<source name>:<path inside the source>`.
        path_free_sources: names of sources whose files are no paths: tables of URLs, buckets.
    """
    name, _, inside = source_uri.partition(":")
    if name in path_free_sources:
        return False
    return inside.startswith("/") or ".." in inside.split("/")


def with_repeats(rows: Sequence[Row], key: str) -> list[dict[str, Any]]:
    """The rows with `row_number` (from 0), and `is_repeated`: whether a row before has the same key."""
    seen: set[Any] = set()
    out = []
    for number, row in enumerate(rows):
        out.append({**row, "row_number": number, "is_repeated": row[key] in seen})
        seen.add(row[key])
    return out


def image_rows(rows: Sequence[Row], context: Context) -> list[dict[str, Any]]:
    """New images: the table's columns without the thumbnail, whether an earlier version has it, and its name's form."""
    return [
        {
            **{column: value for column, value in row.items() if column != "thumbnail"},
            "is_known_before": row["image_id"] in context.known_ids,
            "leads_outside": leads_outside(row["source_uri"] or "", context.path_free_sources),
        }
        for row in rows
    ]


def _image_relations(row: Row, image_ids: frozenset[str]) -> dict[str, Any]:
    """How the images that a pair or triplet names relate to each other and to table images."""
    negatives = row["negative_image_ids"] or []
    named = {row["query_image_id"], row["target_image_id"], *negatives}
    return {
        "query_image_id": row["query_image_id"],
        "target_image_id": row["target_image_id"],
        "is_query_first_negative": bool(negatives) and negatives[0] == row["query_image_id"],
        "is_target_a_negative": row["target_image_id"] in negatives,
        "are_images_known": named <= image_ids,
    }


def _similarities_in_window(row: Row, context: Context) -> dict[str, float | None]:
    """The pair's similarity by each encoder that mined it in this run, to be checked against the encoder's window.

    A pair of two earlier images takes the place of one whose image was taken down. It was mined by an earlier run, in
    the windows of that run, and is not checked.
    """
    is_mined_now = not context.new_image_ids.isdisjoint((row["query_image_id"], row["target_image_id"]))
    mined_by = (row["mined_by"] or []) if is_mined_now else []
    return {f"similarity_{role}": row.get(f"similarity_{role}") if role in mined_by else None for role in MINER_ROLES}


def pair_rows(rows: Sequence[Row], context: Context) -> list[dict[str, Any]]:
    """New pairs."""
    out = []
    for row in rows:
        mined_by = row["mined_by"] or []
        similarities = [row[f"similarity_{e}"] for e in mined_by if row.get(f"similarity_{e}") is not None]
        out.append(
            {
                "pair_id": row["pair_id"],
                "is_known_before": row["pair_id"] in context.known_ids,
                **_image_relations(row, context.image_ids),
                "is_same_image": row["query_image_id"] == row["target_image_id"],
                "encoders": len(mined_by),
                "are_miners_configured": set(mined_by) <= context.window_roles,
                "rank": row["rank"],
                "similarity_of_miners": max(similarities, default=math.nan),
                **_similarities_in_window(row, context),
            }
        )
    return out


def triplet_rows(rows: Sequence[Row], context: Context) -> list[dict[str, Any]]:
    """New triplets."""
    out = []
    for row in rows:
        texts, target, negative = row["instructions"] or [], row["judge_target"] or [], row["judge_negative"] or []
        is_reviewed = row["triplet_id"] in context.reviewed_ids
        out.append(
            {
                "triplet_id": row["triplet_id"],
                "is_known_before": row["triplet_id"] in context.known_ids,
                **_image_relations(row, context.image_ids),
                "is_reviewed": is_reviewed,
                "instructions_count": None if is_reviewed else len(texts),
                "are_instructions_distinct": len({text.strip().lower() for text in texts}) == len(texts),
                "shortest_instruction_chars": min((len(text.strip()) for text in texts), default=0),
                "lowest_judge_target": math.nan if is_reviewed else min(target, default=math.nan),
                "are_scores_whole": len(target) == len(texts)
                and len(negative) == len(row["negative_image_ids"] or [])
                and all(score is not None and 0 <= score <= 1 for score in [*target, *negative]),
                "prompt_sha256": row["prompt_sha256"],
                "captioner_revision": row["captioner_revision"],
                "judge_revision": row["judge_revision"],
                "text": " | ".join(texts)[:300],
            }
        )
    return out


ROWS = {"images": image_rows, "pairs": pair_rows, "triplets": triplet_rows}
