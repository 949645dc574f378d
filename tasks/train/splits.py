"""Held-out triplets: whole connected components of images, so that no image stands on both sides.

Two images are connected when they are query and target of one triplet. Components are taken in the order of a hash of
their smallest image id, as many whole ones as fit: a new batch adds to the split, it does not shuffle it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tasks.store.id_groups import connected_ids


def held_out_images(pairs: Sequence[tuple[str, str]], share: float) -> set[str]:
    """Images never to be trained on.

    Args:
        pairs: (query, target) image ids, one per triplet.
        share: share of the triplets to hold out, 0..1; whole components only, never more than that.
    Returns:
        The ids in the held-out components; empty where no component is small enough.
    """
    of = connected_ids(pairs)
    sizes: dict[str, int] = {}
    for query, _ in pairs:
        sizes[of[query]] = sizes.get(of[query], 0) + 1
    room = share * len(pairs)
    taken: set[str] = set()
    for name in sorted(sizes, key=lambda n: hashlib.sha256(f"held-out:{n}".encode()).digest()):
        if sizes[name] <= room:
            taken.add(name)
            room -= sizes[name]
    return {image for image, name in of.items() if name in taken}
