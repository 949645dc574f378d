"""Tables of candidates from letters and ranks, and back; for the tests of tasks/select."""

import itertools
import random

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from tasks.config import MINER_ROLES
from tasks.select.candidates import ABSENT, Candidates

Ranks = dict[str, int]  # encoder -> rank


pairs_of_letters = st.lists(
    st.sampled_from([a + b for a, b in itertools.permutations("abcdef", 2)]), unique=True, max_size=30
)


def table_of(
    rows: list[tuple[str, str, Ranks]], reverse: dict[int, Ranks] | None = None, cosines: dict[str, float] | None = None
) -> Candidates:
    """Candidates (query, target, encoder -> rank); `reverse`: number of a row -> ranks of its other direction;
    `cosines`: encoder -> of all rows.
    """
    image_ids = pa.array(sorted({i for q, t, _ in rows for i in (q, t)}), pa.string())
    index = {image: n for n, image in enumerate(image_ids.to_pylist())}
    queries, targets = (np.array([index[r[end]] for r in rows], np.int32) for end in (0, 1))
    ranks, reverse_ranks = (
        np.array([[row.get(e, ABSENT) for e in MINER_ROLES] for row in ranks_of_rows], np.int32).reshape(
            -1, len(MINER_ROLES)
        )
        for ranks_of_rows in ([r[2] for r in rows], [(reverse or {}).get(n, {}) for n in range(len(rows))])
    )
    similarities = None if cosines is None else np.array([[cosines.get(e, np.nan) for e in MINER_ROLES]] * len(rows))
    return Candidates(image_ids, queries, targets, ranks, reverse_ranks, similarities)


def rows_of(c: Candidates) -> list[tuple[str, str, Ranks]]:
    """The inverse of `table_of`."""
    image_ids = c.image_ids.to_pylist()
    ranks = [{e: r for e, r in zip(MINER_ROLES, row, strict=True) if r != ABSENT} for row in c.ranks.tolist()]
    return [
        (image_ids[q], image_ids[t], of) for q, t, of in zip(c.queries.tolist(), c.targets.tolist(), ranks, strict=True)
    ]


def pairs_of(c: Candidates) -> list[tuple[str, str]]:
    """(query, target) of each pair."""
    return [(q, t) for q, t, _ in rows_of(c)]


def candidates_of(names: list[str]) -> Candidates:
    """Candidates from pairs of letters, at ranks 0 to 4 in turn."""
    return table_of([(n[0], n[1], {"semantic": i % 5}) for i, n in enumerate(names)])


def shuffled(c: Candidates, rng: random.Random) -> Candidates:
    """The same candidates in another order."""
    return c.take(np.array(rng.sample(range(len(c)), len(c)), np.int64))


def on_circle(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane, (n, 2) float16."""
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float16)
