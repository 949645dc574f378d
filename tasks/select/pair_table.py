"""Write the pairs table and the dropped rows of select."""

from __future__ import annotations

from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import ENCODER_ROLES
from tasks.select.candidates import ABSENT, AT_ONCE, Candidates
from tasks.select.negatives import Negatives
from tasks.select.quotas import QUOTAS
from tasks.store import Store
from tasks.store.tables import TableWriter

if TYPE_CHECKING:
    import pyarrow as pa


def pair_table(c: Candidates, batch: str, similarities: np.ndarray, negatives: Negatives) -> pa.Table:
    """Rows of table `pairs`, by pair id.

    Args:
        c: the pairs.
        batch: the run's.
        similarities: (m, 3) float64, of query and target; NaN where an encoder has no vector for one of them.
        negatives: of the pairs.
    """
    import pyarrow as pa

    rows = np.argsort(c.pair_ids)
    place = np.empty(len(c), np.int64)
    place[rows] = np.arange(len(c))
    order = np.argsort(place[negatives.pairs], kind="stable")
    of, images, scores = place[negatives.pairs][order], negatives.images[order], negatives.similarities[order]
    c, similarities = c.take(rows), similarities[rows]
    ends = np.cumsum([0, *(np.bincount(of, minlength=len(c)) + 1)])  # negative 0 is the query
    first = np.zeros(ends[-1], bool)
    first[ends[:-1]] = True
    negative_images, negative_scores = np.empty(ends[-1], np.int64), np.empty(ends[-1])
    negative_images[first], negative_images[~first] = c.queries, images
    negative_scores[first], negative_scores[~first] = similarities[np.arange(len(c)), c.mined_by.argmax(axis=1)], scores
    who = np.nonzero(c.mined_by)
    offsets = pa.array(ends, pa.int32())
    return pa.table(
        {
            "pair_id": ascii_column(c.pair_ids),
            "batch": pa.repeat(pa.scalar(batch), len(c)),
            "query_image_id": c.names.take(pa.array(c.queries)),
            "target_image_id": c.names.take(pa.array(c.targets)),
            "mined_by": pa.ListArray.from_arrays(
                pa.array(np.cumsum([0, *c.mined_by.sum(axis=1)]), pa.int32()),
                pa.array(ENCODER_ROLES).take(pa.array(who[1])),
            ),
            **{f"similarity_{e}": _or_null(similarities[:, n]) for n, e in enumerate(ENCODER_ROLES)},
            "rank": pa.array(c.ranks.min(axis=1, initial=ABSENT), pa.int32()),
            "negative_image_ids": pa.ListArray.from_arrays(offsets, c.names.take(pa.array(negative_images))),
            "negative_similarity": pa.ListArray.from_arrays(offsets, _or_null(negative_scores)),
        }
    )


def _or_null(values: np.ndarray) -> pa.Array:
    """float64 as float32, NaN as null."""
    import pyarrow as pa

    return pa.array(values.astype(np.float32), mask=np.isnan(values))


def ascii_column(values: np.ndarray) -> pa.Array:
    """(n,) ASCII of one width as strings."""
    import pyarrow as pa

    kind = pa.binary(values.dtype.itemsize)
    return (
        pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
        .cast(pa.binary())
        .cast(pa.string())
    )


def _write_dropped(
    store: Store,
    batch: str,
    left: Sequence[tuple[str, Candidates, np.ndarray | None]],
    pairs: Candidates,
    negatives: Negatives,
) -> None:
    """Write what was left out, by reason, pair id and detail: some thousand rows in memory as text at a time.

    Args:
        left: reason, pairs, which of QUOTAS was full (where that is the reason).
        pairs: those that were taken.
        negatives: theirs; the copies among them.
    """
    import pyarrow as pa

    writer = TableWriter(store.dropped_path("select", batch), "dropped")

    def add(reason: str, keys: np.ndarray, details: list[str]) -> None:
        constant = {
            name: pa.repeat(pa.scalar(value), len(keys))
            for name, value in (("stage", "select"), ("batch", batch), ("reason", reason))
        }
        writer.add_table(pa.table({**constant, "key": ascii_column(keys), "detail": pa.array(details, pa.string())}))

    def add_pairs(reason: str, c: Candidates, quotas: np.ndarray | None) -> None:
        order = np.argsort(c.pair_ids)
        for start in range(0, len(order), AT_ONCE):
            rows = order[start : start + AT_ONCE]
            queries, targets = (
                [quoted(i) for i in c.names.take(pa.array(ends[rows])).to_pylist()] for ends in (c.queries, c.targets)
            )
            which = [""] * len(rows) if quotas is None else [f'"quota": "{QUOTAS[q]}", ' for q in quotas[rows].tolist()]
            details = [
                f'{{"query": {q}, {quota}"target": {t}}}' for q, quota, t in zip(queries, which, targets, strict=True)
            ]
            add(reason, c.pair_ids[rows], details)

    try:
        for reason, c, quotas in sorted(left, key=lambda x: x[0]):
            if reason > "near_duplicate_negative":
                break
            add_pairs(reason, c, quotas)
        images = pairs.names.take(pa.array(negatives.copies)).to_pylist()
        copies = sorted(
            zip(
                pairs.pair_ids[negatives.copy_pairs].tolist(),
                (f'{{"negative": {quoted(i)}}}' for i in images),
                strict=True,
            )
        )
        add("near_duplicate_negative", np.array([key for key, _ in copies], "S32"), [detail for _, detail in copies])
        for reason, c, quotas in sorted(left, key=lambda x: x[0]):
            if reason > "near_duplicate_negative":
                add_pairs(reason, c, quotas)
        writer.close()
    except BaseException:
        writer.discard()
        raise
