"""Write the pairs table and the dropped rows of select."""

from __future__ import annotations

from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as json_string
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.config import ENCODER_ROLES
from tasks.select.candidates import ABSENT, BLOCK_ROWS, Candidates
from tasks.select.negatives import Negatives
from tasks.select.quotas import QUOTAS
from tasks.store import Store
from tasks.store.tables import TableWriter

if TYPE_CHECKING:
    import pyarrow as pa


class DroppedPairs(NamedTuple):
    """Candidates that are dropped for one reason; `quotas`: (m,) which of QUOTAS was full, where that is the reason."""

    reason: str
    pairs: Candidates
    quotas: np.ndarray | None = None


def pair_table(c: Candidates, batch: str, similarities: np.ndarray, negatives: Negatives) -> pa.Table:
    """Rows of table `pairs`, by pair id.

    Args:
        c: the pairs.
        batch: the run's.
        similarities: (m, 3) float64, of query and target; NaN where an encoder has no vector of one of them.
        negatives: of the pairs.
    """
    import pyarrow as pa

    rows = np.argsort(c.pair_ids)
    index = np.empty(len(c), np.int64)
    index[rows] = np.arange(len(c))
    order = np.argsort(index[negatives.pairs], kind="stable")
    pair, images, scores = index[negatives.pairs][order], negatives.images[order], negatives.similarities[order]
    c, similarities = c.take(rows), similarities[rows]
    ends = np.cumsum([0, *(np.bincount(pair, minlength=len(c)) + 1)])  # negative 0 is the query
    is_query = np.zeros(ends[-1], bool)
    is_query[ends[:-1]] = True
    negative_images, negative_scores = np.empty(ends[-1], np.int64), np.empty(ends[-1])
    negative_images[is_query], negative_images[~is_query] = c.queries, images
    first_encoder = c.mined_by.argmax(axis=1)
    negative_scores[is_query], negative_scores[~is_query] = similarities[np.arange(len(c)), first_encoder], scores
    _, encoders = np.nonzero(c.mined_by)
    encoder_offsets = pa.array(np.cumsum([0, *c.mined_by.sum(axis=1)]), pa.int32())
    offsets = pa.array(ends, pa.int32())
    return pa.table(
        {
            "pair_id": ascii_column(c.pair_ids),
            "batch": pa.repeat(pa.scalar(batch), len(c)),
            "query_image_id": c.image_ids.take(pa.array(c.queries)),
            "target_image_id": c.image_ids.take(pa.array(c.targets)),
            "mined_by": pa.ListArray.from_arrays(encoder_offsets, pa.array(ENCODER_ROLES).take(pa.array(encoders))),
            **{f"similarity_{e}": _nan_as_null(similarities[:, n]) for n, e in enumerate(ENCODER_ROLES)},
            "rank": pa.array(c.ranks.min(axis=1, initial=ABSENT), pa.int32()),
            "negative_image_ids": pa.ListArray.from_arrays(offsets, c.image_ids.take(pa.array(negative_images))),
            "negative_similarity": pa.ListArray.from_arrays(offsets, _nan_as_null(negative_scores)),
        }
    )


def _nan_as_null(values: np.ndarray) -> pa.Array:
    """float64 as float32, NaN as null."""
    import pyarrow as pa

    return pa.array(values.astype(np.float32), mask=np.isnan(values))


def ascii_column(values: np.ndarray) -> pa.Array:
    """ASCII of one width, (n,) as numpy bytes, as a column of strings."""
    import pyarrow as pa

    width = pa.binary(values.dtype.itemsize)
    buffers = [None, pa.py_buffer(np.ascontiguousarray(values))]
    return pa.FixedSizeBinaryArray.from_buffers(width, len(values), buffers).cast(pa.binary()).cast(pa.string())


class _DroppedWriter:
    """Write the dropped rows of a batch, a block of them in memory as text at a time."""

    def __init__(self, writer: TableWriter, batch: str) -> None:
        self.writer, self.batch = writer, batch

    def add(self, reason: str, keys: np.ndarray, details: list[str]) -> None:
        """Rows of one reason: their keys (n,) ASCII and their details as JSON."""
        import pyarrow as pa

        constants = {"stage": "select", "batch": self.batch, "reason": reason}
        columns = {name: pa.repeat(pa.scalar(value), len(keys)) for name, value in constants.items()}
        self.writer.add_table(
            pa.table({**columns, "key": ascii_column(keys), "detail": pa.array(details, pa.string())})
        )

    def add_pairs(self, dropped: DroppedPairs) -> None:
        """Pairs by id, with their images and the full quota as details."""
        import pyarrow as pa

        c, quotas = dropped.pairs, dropped.quotas
        order = np.argsort(c.pair_ids)
        for start in range(0, len(order), BLOCK_ROWS):
            rows = order[start : start + BLOCK_ROWS]
            queries, targets = (
                [json_string(i) for i in c.image_ids.take(pa.array(ends[rows])).to_pylist()]
                for ends in (c.queries, c.targets)
            )
            quota_texts = [""] * len(rows)
            if quotas is not None:
                quota_texts = [f'"quota": "{QUOTAS[q]}", ' for q in quotas[rows].tolist()]
            details = [
                f'{{"query": {q}, {quota}"target": {t}}}'
                for q, quota, t in zip(queries, quota_texts, targets, strict=True)
            ]
            self.add(dropped.reason, c.pair_ids[rows], details)

    def add_copies(self, pairs: Candidates, negatives: Negatives) -> None:
        """Proposed negatives that are copies, by pair id and image."""
        import pyarrow as pa

        images = pairs.image_ids.take(pa.array(negatives.copies)).to_pylist()
        details = (f'{{"negative": {json_string(i)}}}' for i in images)
        rows = sorted(zip(pairs.pair_ids[negatives.copy_pairs].tolist(), details, strict=True))
        self.add("near_duplicate_negative", np.array([key for key, _ in rows], "S32"), [detail for _, detail in rows])


def write_dropped(
    store: Store, batch: str, dropped: Sequence[DroppedPairs], pairs: Candidates, negatives: Negatives
) -> None:
    """Write what was left out, by reason, pair id and detail.

    Args:
        store: to write to.
        batch: the run's.
        dropped: pairs that were left out.
        pairs: pairs that were selected.
        negatives: theirs; the copies among them are dropped rows.
    """
    writer = TableWriter(store.dropped_path("select", batch), "dropped")
    rows = _DroppedWriter(writer, batch)
    by_reason = sorted(dropped, key=lambda d: d.reason)
    try:
        for drop in by_reason:
            if drop.reason <= "near_duplicate_negative":
                rows.add_pairs(drop)
        rows.add_copies(pairs, negatives)
        for drop in by_reason:
            if drop.reason > "near_duplicate_negative":
                rows.add_pairs(drop)
        writer.close()
    except BaseException:
        writer.discard()
        raise
