"""The triplets explorer of a version: pages of found rows with their images, and one image's bytes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

from tasks.browse.drops import detail_values, shown_details
from tasks.browse.published import PublishedVersion
from tasks.browse.selection import ACCEPTED, Selection
from tasks.browse.triplets import TRIPLET_COLUMNS, TripletIndex, rejected_rows
from tasks.errors import DataError
from tasks.reasons import why
from tasks.store.shards import SHARDS

PAGE_ROWS = 20
IMAGE_COLUMNS = ["image_id", "source_uri", "license_code", "attribution", "shard", "offset_bytes", "size_bytes"]
_BUILD = threading.Lock()  # one index is built at a time: it takes seconds and memory for a large version


class Explorer:
    """What the pages of one version read: its index, and where its images lie."""

    def __init__(self, index: TripletIndex, images: Any, shards: Mapping[str, Path]) -> None:
        """`images`: table with IMAGE_COLUMNS; `shards`: name of a tar -> where it lies."""
        self.index, self.images, self._shards = index, images, shards

    @classmethod
    def of(cls, version: PublishedVersion) -> Explorer:
        """Read and index a version; seconds for a million rows.

        Raises:
            DataError: the DVC cache lacks a file.
        """
        images = version.table("data/images", IMAGE_COLUMNS).combine_chunks()
        triplets = version.table("data/triplets")
        dropped, captioned = version.table("data/dropped/judge"), version.table("data/captioned")
        rejected = None
        if len(dropped) and len(captioned):
            rejected = rejected_rows(captioned, version.table("data/pairs"), dropped)
        index = TripletIndex.build(_with_columns(triplets), images, rejected)
        old = version.files("data/images", ".tar")  # where older versions keep their tars
        return cls(index, images, {**old, **version.files(f"data/{SHARDS}", ".tar")})

    def image(self, image_id: str) -> bytes:
        """The stored JPEG of an image.

        Raises:
            DataError: no such image, or the cache lacks its shard.
        """
        row = self._image_rows([image_id]).get(image_id)
        path = self._shards.get(row["shard"]) if row else None
        if row is None or path is None:
            raise DataError(f"image {image_id[:70]!r}: not in this version")
        with open(path, "rb") as shard:
            shard.seek(row["offset_bytes"])
            return shard.read(row["size_bytes"])

    def sources(self, image_ids: Collection[str]) -> dict[str, str]:
        """Image id -> where it comes from, of those that the version has."""
        rows = self._image_rows(sorted(image_ids))
        return {image_id: str(row["source_uri"]) for image_id, row in rows.items()}

    def _image_rows(self, image_ids: list[str]) -> dict[str, dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.compute as pc

        is_wanted = pc.is_in(self.images["image_id"], value_set=pa.array(image_ids, pa.string()))
        rows = self.images.take(np.flatnonzero(is_wanted.to_numpy())).to_pylist()
        return {row["image_id"]: row for row in rows}

    def shown(self, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Rows by number as templates show them."""
        rows = self.index.rows(np.asarray(numbers, np.int64))
        ids = {i for row in rows for i in (row["query_image_id"], row["target_image_id"])}
        images = self._image_rows(sorted(i for i in ids if i))
        return [shown_row(row, images) for row in rows]

    def page(self, wanted: Selection, number: int) -> dict[str, Any]:
        """What the template shows of one page: rows with images, scores and where they come from.

        Args:
            wanted: the selection.
            number: of the page, 1-based.
        """
        found = self.index.find(wanted)
        start = (number - 1) * PAGE_ROWS
        rows = self.shown(found[start : start + PAGE_ROWS])
        address = {name: value for name, value in vars(wanted).items() if value not in ("", None)}
        return {
            "total": len(found),
            "rows": rows,
            "first": start + 1 if rows else 0,
            "number": number,
            "has_more": len(found) > start + PAGE_ROWS,
            "address": urlencode(address),
        }


def _with_columns(triplets: Any) -> Any:
    """The table with every column of TRIPLET_COLUMNS, also of a version without triplets."""
    from tasks.records import schemas

    schema = schemas()["triplets"]
    return triplets if all(name in triplets.column_names for name in TRIPLET_COLUMNS) else schema.empty_table()


def shown_row(row: dict[str, Any], images: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One row as the template shows it."""
    scores = row.get("judge_target") or []
    texts = [
        {"text": text, "style": style, "score": f"{scores[n]:.3f}" if n < len(scores) else ""}
        for n, (text, style) in enumerate(zip(row["instructions"] or [], row["styles"] or [], strict=False))
    ]
    negatives = list(zip(row.get("negative_image_ids") or [], row.get("judge_negative") or [], strict=False))

    def source(image_id: str) -> str:
        return str((images.get(image_id) or {}).get("source_uri", ""))

    ends = [images.get(row[name]) or {} for name in ("query_image_id", "target_image_id")]
    licences = " and ".join(dict.fromkeys(str(image.get("license_code", "unknown")) for image in ends))
    provenance = [
        ("version", row["batch"]),
        ("mined by", ", ".join(row.get("mined_by") or [])),
        ("licences", licences),
        ("written by", f"{row.get('captioner') or ''} {row.get('captioner_revision') or ''}".strip()),
        ("judged by", f"{row.get('judge') or ''} {row.get('judge_revision') or ''}".strip()),
        ("prompts", str(row.get("prompt_sha256") or "")[:12]),
    ]
    reason = row["reason"]
    return {
        "id": row.get("triplet_id") or row["pair_id"],
        "query": row["query_image_id"],
        "target": row["target_image_id"],
        "query_source": source(row["query_image_id"]),
        "target_source": source(row["target_image_id"]),
        "texts": texts,
        "lowest": min(texts, key=lambda text: float(text["score"] or 0), default={"text": "", "score": ""}),
        "negatives": [(image_id, f"{score:.2f}") for image_id, score in negatives],
        "provenance": [(name, value) for name, value in provenance if value],
        "is_accepted": reason == ACCEPTED,
        "reason": reason,
        "why": why("judge", reason),
        "details": shown_details(detail_values(row.get("detail"))),
    }


@functools.lru_cache(maxsize=2)
def _explorer(clone: Path, name: str) -> Explorer:
    return Explorer.of(PublishedVersion(clone, name))


def explorer_of(version: PublishedVersion) -> Explorer:
    """The explorer of a version; the last two are kept.

    Raises:
        DataError: the DVC cache lacks a file.
    """
    with _BUILD:
        return _explorer(version.clone, version.name)
