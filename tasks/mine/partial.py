"""Mine in parts: the candidates of each block of pairs in a file of its own, and their merge.

A part makes the blocks that the plan gives it (tasks/mine/pair_blocks.py), one file each below `.run/parts`; a file is
its block's completion marker. The merge takes a range of queries at a time from all files, and keeps each query's
nearest: the same rows as one join of everything, because a query's k nearest are among its k nearest of each block.

The backends of FAISS ask for queries, not for blocks: their parts are ranges of queries.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.knn.neighbours import Neighbours, rank_order
from tasks.knn.search import join_block, join_in_window
from tasks.knn.spec import SearchSpec
from tasks.mine.corpus import Corpus
from tasks.mine.pair_blocks import Block, cut, plan_parts, rows_within
from tasks.store import Store

log = logging.getLogger(__name__)
# a query's position among the run's queries, the row of a neighbour, their similarity
CANDIDATE = np.dtype([("query", "<i4"), ("target", "<i4"), ("similarity", "<f8")])
MAPPED_BYTES = 1 << 16  # smaller files are read whole: an empty one cannot be mapped


class PartialSearch:
    """One encoder's search of one run, divided into a number of parts."""

    def __init__(self, store: Store, encoder: str, corpus: Corpus, spec: SearchSpec, parts: int) -> None:
        """Plan the parts; nothing is read or written.

        Args:
            store: of the worktree.
            encoder: the encoder's role.
            corpus: all that it has embedded.
            spec: of the search.
            parts: a count.
        """
        self.store, self.corpus, self.spec, self.parts = store, corpus, spec, parts
        self.query_rows, self.tie_rank = corpus.query_rows, corpus.tie_rank
        self.folder = search_folder(store, encoder, corpus, spec) / str(parts)
        rows = rows_within(spec.memory_mib, spec.top_k)
        new = int(corpus.is_new.sum())
        if spec.backend.startswith("faiss"):
            ranges = [cut(part.start, part.stop, -(-(part.stop - part.start) // rows)) for part in self._ranges()]
            self.plan = [[Block(queries) for queries in of_part] for of_part in ranges]
        else:
            self.plan = plan_parts(new, len(self.query_rows) - new, parts, rows) if new else [[] for _ in range(parts)]

    def _ranges(self) -> list[slice]:
        """Ranges of queries, one a part; some are empty where there are fewer queries than parts."""
        count = len(self.query_rows)
        return [slice(count * n // self.parts, count * (n + 1) // self.parts) for n in range(self.parts)]

    def path(self, block: Block) -> Path:
        """The file of a block's candidates."""
        return self.folder / f"{block.name}.npy"

    @property
    def made(self) -> int:
        """Blocks whose file is there, a count."""
        return sum(self.path(block).exists() for part in self.plan for block in part)

    def make_part(self, number: int) -> int:
        """Search the blocks of a part that have no file yet. Returns the pairs that were compared, a count.

        Args:
            number: of the part, from 0.
        """
        pairs = 0
        thresholds = np.full(len(self.corpus.ids), self.spec.window.low, np.float64)
        positions = np.empty(len(self.corpus.ids), np.int64)
        positions[self.query_rows] = np.arange(len(self.query_rows))
        for block in self.plan[number]:
            if self.path(block).exists():
                continue
            found = self._search(block, thresholds)
            order = np.argsort(positions[found.query_rows], kind="stable")
            candidates = np.empty(len(order), CANDIDATE)
            candidates["query"] = positions[found.query_rows[order]]
            candidates["target"], candidates["similarity"] = found.target_rows[order], found.similarity[order]
            buffer = io.BytesIO()
            np.save(buffer, candidates)
            self.store.write_bytes(self.path(block), buffer.getvalue())
            pairs += block.pairs
            log.info("mine: block %s, %d pairs, %d candidates", block.name, block.pairs, len(candidates))
        return pairs

    def _search(self, block: Block, thresholds: np.ndarray) -> Neighbours:
        corpus, queries = self.corpus, self.query_rows[block.first]
        if self.spec.backend.startswith("faiss"):
            return join_in_window(corpus.vectors, corpus.is_new, queries, self.spec, tie_rank=self.tie_rank)
        others = None if block.second is None else self.query_rows[block.second]
        tie_rank, coded = self.tie_rank, corpus.coded
        return join_block(corpus.vectors, queries, others, thresholds, self.spec, tie_rank=tie_rank, coded=coded)

    def neighbours(self, queries: slice) -> Neighbours:
        """The neighbours of a range of queries, from the blocks' files.

        Args:
            queries: positions among the run's queries.
        Returns:
            By row of the corpus, then rank.
        """
        files = [self.path(block) for part in self.plan for block in part if _meets(block, queries)]
        found = np.concatenate([np.empty(0, CANDIDATE), *(_read_range(path, queries) for path in files)])
        rows = found["query"].astype(np.int64) - queries.start
        order = rank_order(rows, found["similarity"], found["target"], self.tie_rank)
        counts = np.bincount(rows, minlength=queries.stop - queries.start)
        rank = (np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.int32)
        order, rank = order[rank < self.spec.top_k], rank[rank < self.spec.top_k]
        query_rows = self.query_rows[found["query"][order]]
        by_row = np.argsort(query_rows, kind="stable")
        targets, similarity = found["target"][order].astype(np.int64), found["similarity"][order]
        return Neighbours(query_rows[by_row], targets[by_row], similarity[by_row], rank[by_row])


def search_folder(store: Store, encoder: str, corpus: Corpus, spec: SearchSpec) -> Path:
    """Where the parts of one search lie: the name holds a hash of what decides the candidates, so that those of other
    vectors or another window never meet.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((corpus.revision, spec.window.low, spec.window.high, spec.top_k, spec.backend)).encode())
    digest.update(np.packbits(corpus.is_new).tobytes())
    for buffer in corpus.ids.buffers():
        if buffer is not None:
            digest.update(buffer)
    return _encoder_folder(store, encoder) / digest.hexdigest()


def _encoder_folder(store: Store, encoder: str) -> Path:
    return store.folder(".run", "parts", f"mine-{encoder}")


def begun_search(store: Store, encoder: str, corpus: Corpus, spec: SearchSpec) -> PartialSearch | None:
    """The search that earlier calls with --part began, the one with most blocks done; None where there is none."""
    folder = search_folder(store, encoder, corpus, spec)
    counts = sorted(int(path.name) for path in folder.iterdir()) if folder.is_dir() else []
    searches = [PartialSearch(store, encoder, corpus, spec, count) for count in counts]
    return max(searches, key=lambda search: (search.made, search.parts), default=None)


def remove_parts(store: Store, encoder: str) -> None:
    """Remove the candidates of an encoder's parts, which are merged."""
    shutil.rmtree(_encoder_folder(store, encoder), ignore_errors=True)


def _meets(block: Block, queries: slice) -> bool:
    """Whether a block holds some of a range of queries."""
    ends: Sequence[slice] = [block.first, block.second or block.first]
    return any(end.start < queries.stop and queries.start < end.stop for end in ends)


def _read_range(path: Path, queries: slice) -> np.ndarray:
    """The candidates in a file, sorted by query, of a range of queries."""
    is_mapped = path.stat().st_size > MAPPED_BYTES
    candidates = np.load(path, mmap_mode="r" if is_mapped else None, allow_pickle=False)
    start = bisect.bisect_left(candidates["query"], queries.start)
    return np.array(candidates[start : bisect.bisect_left(candidates["query"], queries.stop, lo=start)])
