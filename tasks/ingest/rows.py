"""Rows of the images table and of the dropped table, and the metadata beside each image in its tar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.ingest.inspect import InspectedFile
from tasks.ingest.rules import NormalizedImage, Rejection
from tasks.sources.files import SourceFile

TAKEN_DOWN = "taken_down"
UNNAMED = (TAKEN_DOWN, "blocked")  # reasons of files whose address must not be published: somebody asked, or the law
GIVEN_UP = "is_given_up"  # in a dropped row's detail: the file is not tried again
SOURCE_REFUSED = "is_source_refused"  # the same: its source gave no file at all, which is no try of this one


def short_hash(text: str) -> int:
    """63 bits of a text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class StoredImage:
    """Where a kept image lies.

    Attributes:
        image_id: sha256 of its stored bytes.
        shard: name of its tar.
        offset_bytes: of its bytes in the tar.
    """

    image_id: str
    shard: str
    offset_bytes: int


@dataclass(frozen=True)
class Tries:
    """Batches that did not reach a file, this one included.

    Attributes:
        count: how many.
        most: after how many the file is given up.
        is_counted: whether this batch is one of them; not where a source refused every file.
    """

    count: int
    most: int
    is_counted: bool = True

    def detail(self) -> dict[str, Any]:
        """Fields of a dropped row's detail; a first try of several says nothing."""
        if not self.is_counted:
            return {SOURCE_REFUSED: True}
        fields: dict[str, Any] = {"tries": self.count} if self.count > 1 else {}
        return {**fields, GIVEN_UP: True} if self.count >= self.most else fields


def image_row(inspected: InspectedFile, stored: StoredImage, batch: str, date: str) -> dict[str, Any]:
    """The row of a kept image.

    Args:
        inspected: the file and its image.
        stored: where the image lies.
        batch: that takes it in.
        date: of the batch, ISO.
    """
    file, image = inspected.file, inspected.result
    assert isinstance(image, NormalizedImage)
    caption = file.metadata.caption
    return {
        "image_id": stored.image_id,
        "source_uri": file.uri,
        "source_sha256": inspected.sha256,
        "batch": batch,
        "shard": stored.shard,
        "width_px": image.width_px,
        "height_px": image.height_px,
        "caption": caption,
        "caption_source": "source" if caption else None,
        "license_code": file.license_code,
        "attribution": file.attribution,
        "fetched_at": date,
        "phash": f"{image.phash:016x}",
        "thumbnail": image.thumbnail,
        "offset_bytes": stored.offset_bytes,
        "size_bytes": len(image.content),
        "source_fingerprint": file.fingerprint,
        "robots": inspected.robots,
        "sharpness": image.sharpness,
        "is_blurry": "blurry" in image.flags,
        "is_near_empty": "near_empty" in image.flags,
        "has_extreme_ratio": "extreme_ratio" in image.flags,
        "is_text_heavy": "text_heavy" in image.flags,
        "license_stated": file.metadata.license_stated or "",
    }


def dropped_row(
    inspected: InspectedFile,
    batch: str,
    rejection: Rejection,
    copy_of: str = "",
    also: Sequence[str] = (),
    tries: Tries | None = None,
) -> dict[str, Any]:
    """The row of a dropped file; its `detail` is JSON.

    Args:
        inspected: the file.
        batch: that dropped it.
        rejection: why.
        copy_of: the kept image that it repeats, '' for none.
        also: other kept images that it is a near duplicate of.
        tries: in which a file that may be tried again was not reached.
    """
    if rejection.reason in UNNAMED:
        file = inspected.file
        return hidden_row(file.uri, inspected.sha256, file.fingerprint, batch, rejection.reason)
    detail: dict[str, Any] = {"sha256": inspected.sha256, "why": rejection.detail}
    optional = {
        "copy_of": copy_of,
        "also": list(also),
        "fingerprint": inspected.file.fingerprint,
        "robots": inspected.robots,
    }
    detail |= {name: value for name, value in optional.items() if value}
    if not inspected.is_lasting:
        detail["is_lasting"] = False
        if tries is not None:
            detail |= tries.detail()
    text = json.dumps(detail, ensure_ascii=False, sort_keys=True)
    return {"stage": "ingest", "batch": batch, "key": inspected.file.uri, "reason": rejection.reason, "detail": text}


def hidden_row(uri: str, sha256: str, fingerprint: str, batch: str, reason: str = TAKEN_DOWN) -> dict[str, Any]:
    """The dropped row of a file that a list names: hashes tell a later batch that it is known, nothing names it.

    The rows are published: an address at which the image lies must not stand in them, also where it was never taken in.

    Args:
        uri: its source_uri.
        sha256: of its bytes.
        fingerprint: as its source states it; '' for none.
        batch: that drops it.
        reason: of UNNAMED.
    """
    withheld = {"name": short_hash(uri), "content": short_hash(f"{uri}\0{sha256}")}
    if fingerprint:
        withheld = {"fingerprint": short_hash(fingerprint)}
    name = f"{uri.partition(':')[0]}:withheld-{short_hash(uri):016x}"
    detail = json.dumps({"withheld": withheld}, sort_keys=True)
    return {"stage": "ingest", "batch": batch, "key": name, "reason": reason, "detail": detail}


def shard_metadata(file: SourceFile, image_id: str) -> dict[str, str]:
    """The JSON member beside the image in its tar."""
    return {
        "image_id": image_id,
        "caption": file.metadata.caption or "",
        "license": file.license_code,
        "attribution": file.attribution,
        "source_uri": file.uri,
    }
