"""Write the pairs table and the dropped rows of select."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii as json_string
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import MINER_ROLES
from tasks.select.candidates import ABSENT, BLOCK_ROWS, Candidates
from tasks.select.estimate import Estimated
from tasks.select.negatives import Negatives
from tasks.select.quotas import QUOTAS
from tasks.select.settle import pair_ids
from tasks.store import Store
from tasks.store.tables import TableWriter

if TYPE_CHECKING:
    import pyarrow as pa


def pair_table(
    c: Candidates, batch: str, similarities: np.ndarray, negatives: Negatives, estimated: Estimated | None = None
) -> pa.Table:
    """Rows of table `pairs`, by pair id.

    Args:
        c: the pairs.
        batch: the run's.
        similarities: (m, 4) float64, of query and target; NaN where an encoder has no vector of one of them.
        negatives: of the pairs.
        estimated: of the pairs; None where nothing is estimated.
    """
    import pyarrow as pa

    differences, acceptance = pa.nulls(len(c), pa.int32()), pa.nulls(len(c), pa.float32())
    rows = np.argsort(c.pair_ids)
    index = np.empty(len(c), np.int64)
    index[rows] = np.arange(len(c))
    order = np.argsort(index[negatives.pairs], kind="stable")
    pair, images, scores = index[negatives.pairs][order], negatives.images[order], negatives.similarities[order]
    c, similarities = c.take(rows), similarities[rows]
    if estimated is not None:
        differences = pa.array((estimated.bands[rows] + 1).astype(np.int32))
        acceptance = pa.array(estimated.acceptance[rows].astype(np.float32))
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
            "mined_by": pa.ListArray.from_arrays(encoder_offsets, pa.array(MINER_ROLES).take(pa.array(encoders))),
            **{f"similarity_{e}": _nan_as_null(similarities[:, n]) for n, e in enumerate(MINER_ROLES)},
            "rank": pa.array(c.ranks.min(axis=1, initial=ABSENT), pa.int32()),
            "negative_image_ids": pa.ListArray.from_arrays(offsets, c.image_ids.take(pa.array(negative_images))),
            "negative_similarity": pa.ListArray.from_arrays(offsets, _nan_as_null(negative_scores)),
            "estimated_differences": differences,
            "estimated_acceptance": acceptance,
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


class DroppedWriter:
    """Write the dropped rows of a batch, a block of them in memory as text at a time.

    Rows are added by reason, pair id and detail.
    """

    def __init__(self, store: Store, batch: str, image_ids: pa.Array) -> None:
        """`image_ids`: (p) strings, the images that records name by index."""
        self._writer = TableWriter(store.dropped_path("select", batch), "dropped")
        self._batch = batch
        self._texts = _as_json(image_ids)

    def close(self) -> None:
        """Finish the file and move it into place."""
        self._writer.close()

    def discard(self) -> None:
        """Remove what was written; for a run that ends with an error."""
        self._writer.discard()

    def _add(self, reason: str, keys: np.ndarray, details: pa.Array) -> None:
        """Rows of one reason: their keys (n,) ASCII and their details (n) as JSON."""
        import pyarrow as pa

        constants = {"stage": "select", "batch": self._batch, "reason": reason}
        columns = {name: pa.repeat(pa.scalar(value), len(keys)) for name, value in constants.items()}
        self._writer.add_table(pa.table({**columns, "key": ascii_column(keys), "detail": details}))

    def add_pairs(self, reason: str, records: np.ndarray) -> None:
        """Candidates by pair id, with their images and the full quota, if one is, as details.

        Args:
            reason: of all.
            records: (n,) of settle.DROPPED.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        quotas = pa.array(
            [*(f'"quota": "{name}", ' for name in QUOTAS), "", "", ""]
        )  # the last ones, below 0: none was full
        for start in range(0, len(records), BLOCK_ROWS):
            block = records[start : start + BLOCK_ROWS]
            query, target = (self._texts.take(pa.array(block[end])) for end in ("query", "target"))
            quota = quotas.take(pa.array(block["quota"].astype(np.int64) % len(quotas)))
            details = pc.binary_join_element_wise('{"query": ', query, ", ", quota, '"target": ', target, "}", "")
            self._add(reason, pair_ids(block), details)

    def add_copies(self, pairs: Candidates, negatives: Negatives) -> None:
        """Proposed negatives of pairs that are copies."""
        import pyarrow as pa

        images = self._texts.take(pa.array(negatives.copies)).to_pylist()
        details = (f'{{"negative": {image}}}' for image in images)
        rows = sorted(zip(pairs.pair_ids[negatives.copy_pairs].tolist(), details, strict=True))
        keys = np.array([key for key, _ in rows], "S32")
        self._add("near_duplicate_negative", keys, pa.array([detail for _, detail in rows], pa.string()))


def _as_json(ids: pa.Array) -> pa.Array:
    """Ids as JSON strings, in quotes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pc.any(pc.match_substring_regex(ids, r"[^ !#-\[\]-~]")).as_py():  # a quote, a backslash, or no plain ASCII
        return pa.array([json_string(i) for i in ids.to_pylist()], pa.string())
    return pc.binary_join_element_wise('"', ids, '"', "")
