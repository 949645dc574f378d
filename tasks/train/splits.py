"""The held-out split: whole connected components of images, so that no image is on both sides.

Two images are connected when they are query and target of one triplet. Components are taken in the order of a hash of
their smallest image id, as many whole ones as fit: a new batch adds to the split instead of shuffling it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tasks.store.id_groups import connected_ids


def held_out_images(pairs: Sequence[tuple[str, str]], share: float) -> set[str]:
    """Images that are never trained on.

    Args:
        pairs: (query, target) image ids, one per triplet.
        share: share of the triplets to hold out, 0..1; whole components only, never more than that.
    Returns:
        The ids in the held-out components; empty where no component is small enough.
    """
    component = connected_ids(pairs)
    sizes: dict[str, int] = {}
    for query, _ in pairs:
        sizes[component[query]] = sizes.get(component[query], 0) + 1
    room = share * len(pairs)
    held_out: set[str] = set()
    for name in sorted(sizes, key=lambda n: hashlib.sha256(f"held-out:{n}".encode()).digest()):
        if sizes[name] <= room:
            held_out.add(name)
            room -= sizes[name]
    return {image for image, name in component.items() if name in held_out}
