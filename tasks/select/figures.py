"""Figures of a finished batch, read back from its tables a block at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.config import Params
from tasks.knn.exact import exact_similarity_at
from tasks.store import Store
from tasks.store.id_order import index_in_ids
from tasks.store.tables import ROW_GROUP_ROWS


@dataclass(frozen=True)
class PairCounts:
    """What a batch's table of pairs holds.

    Attributes:
        rows: pairs, a count.
        figures: pairs_<encoder>, those that it mined; negatives_mean, mined negatives of a pair; where differences are
            estimated, pairs_<n>_differences, and expected_yield, the mean chance that the judge accepts a pair.
    """

    rows: int
    figures: dict[str, float]


def count_pairs(store: Store, batch: str, encoders: Sequence[str]) -> PairCounts:
    """Count a batch's pairs."""
    import pyarrow.compute as pc

    mined_by, rows, negatives = Counter[str](), 0, 0
    differences, expected = Counter[int](), 0.0
    columns = ["mined_by", "negative_image_ids", "estimated_differences", "estimated_acceptance"]
    path = store.table_path("pairs", batch)
    for pairs in store.iter_blocks(path, "pairs", columns, rows=ROW_GROUP_ROWS):
        rows += pairs.num_rows
        negatives += pc.sum(pc.list_value_length(pairs.column("negative_image_ids"))).as_py() or 0
        for count in pc.value_counts(pc.list_flatten(pairs.column("mined_by"))).to_pylist():
            mined_by[count["values"]] += count["counts"]
        for count in pc.value_counts(pc.drop_null(pairs.column("estimated_differences"))).to_pylist():
            differences[count["values"]] += count["counts"]
        expected += pc.sum(pairs.column("estimated_acceptance")).as_py() or 0.0
    figures = {f"pairs_{encoder}": float(mined_by[encoder]) for encoder in encoders}
    if rows:
        figures["negatives_mean"] = negatives / rows - 1
    if differences:
        figures |= {f"pairs_{n}_differences": float(count) for n, count in sorted(differences.items())}
        figures["expected_yield"] = expected / differences.total()
    return PairCounts(rows, figures)


def count_drops(store: Store, batch: str) -> dict[str, int]:
    """Reason -> how many rows this stage dropped in a batch for it."""
    import pyarrow.compute as pc

    result = Counter[str]()
    files = sorted(store.folder("data", "dropped", "select").glob("*.parquet"))
    for path in [f for f in files if f.stem == batch or f.stem.rpartition("-")[0] == batch]:
        for rows in store.iter_blocks(path, "dropped", ["reason"], rows=10 * ROW_GROUP_ROWS, encoded=["reason"]):
            for count in pc.value_counts(rows.column("reason")).to_pylist():
                result[count["values"]] += count["counts"]
    return dict(result)


def median_caption_cosine(params: Params, store: Store, batch: str) -> float | None:
    """Median cosine similarity of this batch's images and their captions; None unless one model embeds both."""
    encoders = params.embed.encoders
    if (
        "semantic" not in encoders
        or "caption" not in encoders
        or encoders["semantic"].model != encoders["caption"].model
    ):
        return None
    semantic, caption = (
        store.read_corpus(e, [f"{s}.tar" for s in store.embedded_shards(e) if s.rpartition("-")[0] == batch])
        for e in ("semantic", "caption")
    )
    if not len(semantic.ids) or not len(caption.ids) or semantic.rows.shape[1] != caption.rows.shape[1]:
        return None
    import pyarrow as pa

    rows = index_in_ids(pa.chunked_array([semantic.ids]), caption.ids)
    both = np.flatnonzero(rows >= 0)
    if not len(both):
        return None
    return float(np.median(exact_similarity_at(semantic.rows, caption.rows, both, rows[both])))
