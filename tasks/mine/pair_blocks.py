"""Divide the pair matrix of a run into blocks, and the blocks into parts. Pure functions.

The queries of a run are its new images, then the old ones. Every pair with a new image is compared, and once for both
its ends: the new images are cut into groups, and a block is a group with itself, or with another group. Each part gets
an equal share of the old images; its blocks are that share with every group of new images.
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

from tasks.knn.blocked_join import ENTRY_BYTES


@dataclass(frozen=True)
class Block:
    """All pairs of two groups of queries, or of the pairs inside one.

    Attributes:
        first: positions of one group among the queries.
        second: positions of the other group; None for the pairs inside `first`, each once.
    """

    first: slice
    second: slice | None = None

    @property
    def pairs(self) -> int:
        """Pairs that are compared, a count."""
        rows = self.first.stop - self.first.start
        if self.second is None:
            return rows * (rows - 1) // 2
        return rows * (self.second.stop - self.second.start)

    @property
    def name(self) -> str:
        """Name of the block's file, the same for equal blocks."""
        ends = [self.first, self.second or self.first]
        return "-".join(f"{end.start}.{end.stop}" for end in ends)


def rows_within(memory_mib: int, top_k: int) -> int:
    """Queries whose candidates fit the memory of one join, a count.

    Args:
        memory_mib: of the join, MiB; half of it for candidates.
        top_k: most neighbours of a query, a count.
    """
    return max(2, (memory_mib << 20) // 2 // (top_k * ENTRY_BYTES))


def cut(start: int, stop: int, pieces: int) -> list[slice]:
    """At most `pieces` slices of nearly equal size that cover start to stop; none is empty, and none covers nothing."""
    pieces = min(pieces, stop - start)
    if pieces < 1:
        return []
    edges = [start + (stop - start) * n // pieces for n in range(pieces + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]


def share_new(new: int, parts: int, groups: int) -> list[list[Block]]:
    """The pairs among the new images as blocks, for each part: the largest first to the part with the least work.

    Args:
        new: new images, a count.
        parts: a count.
        groups: of new images, a count.
    """
    slices = cut(0, new, groups)
    blocks = [Block(group) for group in slices]
    blocks += [Block(one, other) for one, other in itertools.combinations(slices, 2)]
    shared: list[list[Block]] = [[] for _ in range(parts)]
    work = [(0, part) for part in range(parts)]  # a heap
    for block in sorted(blocks, key=lambda b: -b.pairs):
        pairs, part = heapq.heappop(work)
        shared[part].append(block)
        heapq.heappush(work, (pairs + block.pairs, part))
    return shared


def plan_parts(new: int, old: int, parts: int, rows: int) -> list[list[Block]]:
    """The blocks of each part; together they hold every pair with a new image once.

    Few groups mean few lists of candidates for a query to merge; of the numbers near the fewest possible the one that
    divides the work best is taken.

    Args:
        new: new images, a count; they come first among the queries.
        old: old images, a count.
        parts: a count.
        rows: most queries in the two groups of one block, a count.
    """
    group_rows = max(1, rows // 2)
    fewest = max(math.ceil(math.sqrt(2 * parts)) if parts > 1 else 1, math.ceil(new / group_rows))
    tried = [
        share_new(new, parts, groups) for groups in range(fewest, fewest + (math.isqrt(parts) if parts > 1 else 1))
    ]
    planned = min(tried, key=lambda shared: max(sum(block.pairs for block in part) for part in shared))
    groups = cut(0, new, fewest)
    for part in range(parts):
        share = slice(new + old * part // parts, new + old * (part + 1) // parts)
        pieces = cut(share.start, share.stop, max(1, math.ceil((share.stop - share.start) / group_rows)))
        planned[part] += [Block(group, piece) for piece in pieces for group in groups]
    return planned
