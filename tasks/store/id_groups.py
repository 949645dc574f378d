"""Groups of ids that pairs connect, directly or through other ids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def connected_ids(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The connected component of each id, named by its smallest id.

    Args:
        pairs: two ids each, in any order; an id paired with itself is a component of its own.
    Returns:
        id -> the smallest id of its component, for every id in `pairs`, by id. The names depend neither on the order
        of the pairs nor on the order within a pair.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = list(pairs)
    ids = sorted({i for pair in pairs for i in pair})
    index = {i: n for n, i in enumerate(ids)}
    ends = np.array([[index[a], index[b]] for a, b in pairs], np.int64).reshape(-1, 2)
    edges = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(ids), len(ids)))
    _, labels = connected_components(edges, directed=False)  # (ids,) component numbers
    names: dict[int, str] = {}
    return {i: names.setdefault(label, i) for i, label in zip(ids, labels.tolist(), strict=True)}
