"""Candidates as columns: merged over the encoders, and ranked among all that was mined for their query."""

import numpy as np
import pyarrow as pa

from tasks.select.candidates import MinedRows, merge_candidates
from tests.support.candidates import rows_of


def test_each_pair_is_there_once_with_the_ranks_of_all_encoders():
    def mined(*rows: tuple[int, int, int]) -> MinedRows:
        queries, targets, ranks = (np.array(x, np.int32) for x in zip(*rows, strict=True))
        return MinedRows(queries, targets, np.full(len(rows), 0.9, np.float32), ranks)

    merged = merge_candidates(
        pa.array(["a", "b"]), {"caption": mined((0, 1, 4)), "semantic": mined((1, 0, 2), (0, 1, 0), (0, 0, 0))}
    )
    ranks, reverse_ranks = {"semantic": 0, "caption": 4}, {"semantic": 2}
    assert rows_of(merged) == [("a", "b", ranks), ("b", "a", reverse_ranks)]  # no image is its own target
    assert [of for *_, of in rows_of(merged.mirrored())] == [{"semantic": 2, "caption": 4}, ranks]
    assert merged.reverse_ranks.tolist() == merged.ranks[::-1].tolist()
