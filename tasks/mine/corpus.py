"""All that an encoder has embedded, as mine needs it: ids, vectors, which images are new, the order of the queries."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.errors import DataError
from tasks.knn.choose_prefilter import load_torch_if_large
from tasks.knn.codes import CodedRows
from tasks.knn.exact import Rows
from tasks.knn.spec import SearchSpec
from tasks.mine.code_cache import cached_codes
from tasks.store import Store
from tasks.store.id_order import id_order


@dataclass(frozen=True)
class Corpus:
    """All that an encoder has embedded, ready for the join.

    Attributes:
        ids: (n) image ids.
        vectors: (n, d) float16.
        is_new: (n,) bool, images of this batch.
        by_id: (n,) int64, the rows sorted by id, so that the order of the shards does not show.
        coded: the rows' codes; None for a small join.
        revision: of the model that made the vectors.
    """

    ids: pa.Array
    vectors: Rows
    is_new: np.ndarray
    by_id: np.ndarray
    coded: CodedRows | None
    revision: str

    @property
    def old_rows(self) -> np.ndarray:
        """Rows of earlier batches, by id."""
        return self.by_id[~self.is_new[self.by_id]]

    @property
    def query_rows(self) -> np.ndarray:
        """All queries of this batch: new rows by id, then old rows by id; none where no row is new."""
        if not self.is_new.any():
            return np.zeros(0, np.int64)
        return np.concatenate([self.by_id[self.is_new[self.by_id]], self.old_rows])

    @property
    def tie_rank(self) -> np.ndarray:
        """(n,) int64, the rank of each row's id."""
        rank = np.empty(len(self.ids), np.int64)
        rank[self.by_id] = np.arange(len(self.ids))
        return rank


def read_corpus(store: Store, encoder: str, batch: str, spec: SearchSpec, also_new: Collection[str] = ()) -> Corpus:
    """Read what the encoder has embedded, with codes where the join is large.

    Args:
        store: to read, and to write codes.
        encoder: role, or name of the index of the encoder that is to follow.
        batch: the run's; its images are new.
        spec: of the search.
        also_new: stems of earlier shards that count as new, because they were embedded in this run.
    Raises:
        DataError: a shard of this batch is not embedded.
    """
    shards = pc.unique(store.read_table("images", ["shard"], batch).column("shard")).to_pylist()
    stems = {Path(shard).stem for shard in shards}
    if missing := sorted(stems - set(store.embedded_shards(encoder))):
        raise DataError(
            f"mine {encoder}: shards {missing} are not embedded; run `python -m tasks embed {encoder}` first"
        )
    corpus = store.read_corpus(encoder)
    is_new = np.zeros(len(corpus.ids), bool)
    for stem in {*stems, *also_new} & corpus.shards.keys():
        is_new[corpus.shards[stem]] = True
    coded = None
    if spec.backend == "blocked" and load_torch_if_large(len(is_new) * int(is_new.sum()), corpus.rows.shape[1]):
        coded = cached_codes(store, encoder, corpus, spec.window.low)
    # with codes only the candidates' rows are read, so the files stay mapped; without codes all rows, again and again
    vectors = corpus.rows.to_array() if coded is None else corpus.rows
    return Corpus(corpus.ids, vectors, is_new, id_order(corpus.ids), coded, corpus.revision)
