"""Licence and attribution of a triplet's images on the triplet's own row: what it may be used for stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.sources.strictness import strictest
from tasks.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

Terms = Mapping[str, tuple[str, str]]  # image id -> (licence, attribution)
OF_NEGATIVES = ("negative_licenses", "negative_attributions")  # columns with one value a negative


def read_terms(store: Store, pairs: pa.Table) -> Terms:
    """Licence and attribution of every image that pairs name as query, target or negative."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ends = [pairs.column(name).combine_chunks() for name in ("query_image_id", "target_image_id")]
    negatives = pairs.column("negative_image_ids").combine_chunks().flatten()
    wanted = pc.unique(pa.chunked_array([*ends, negatives], pa.string()))
    images = store.read_table("images", ["image_id", "license_code", "attribution"])
    rows = images.filter(pc.is_in(images.column("image_id"), value_set=wanted)).to_pydict()
    terms = zip(rows["license_code"], rows["attribution"], strict=True)
    return {image_id: (code or "", name or "") for image_id, (code, name) in zip(rows["image_id"], terms, strict=True)}


def licence_columns(row: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    """The columns of a triplet that state the terms of its images, and the strictest licence among them.

    Args:
        row: with query_image_id, target_image_id, negative_image_ids.
        terms: of these images; one that is not there counts as unknown.
    """
    of = lambda image_id: terms.get(image_id, ("", ""))  # noqa: E731
    query, target = of(row["query_image_id"]), of(row["target_image_id"])
    negatives = [of(image_id) for image_id in row["negative_image_ids"]]
    return {
        "license_code": strictest(code for code, _ in (query, target, *negatives)),
        "query_license": query[0],
        "target_license": target[0],
        "negative_licenses": [code for code, _ in negatives],
        "query_attribution": query[1],
        "target_attribution": target[1],
        "negative_attributions": [name for _, name in negatives],
    }


def keep_negatives(row: Mapping[str, Any], stays: Sequence[int]) -> dict[str, Any]:
    """A triplet with some of its negatives only: their ids, scores and terms.

    Args:
        row: of table `triplets`; terms that are null (of older versions) stay null.
        stays: places of the negatives that stay.
    """
    columns = ("negative_image_ids", "judge_negative", *OF_NEGATIVES)
    out = {**row, **{c: [row[c][n] for n in stays] for c in columns if row.get(c) is not None}}
    if row.get("negative_licenses") is not None:
        out["license_code"] = strictest([row["query_license"], row["target_license"], *out["negative_licenses"]])
    return out
