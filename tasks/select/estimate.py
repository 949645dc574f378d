"""The estimate of differences at work: its inputs read from the store, its chances corrected by earlier batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tasks.config import ENCODER_ROLES, Params
from tasks.select.candidates import Candidates
from tasks.select.differences import DifferenceModel, Record, factors, read_model, unfit_reason
from tasks.select.negatives import Vectors
from tasks.select.spill import WorkingMemory
from tasks.select.words import SIZE, Captions, read_captions
from tasks.store import Store
from tasks.store.tables import ROW_GROUP_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

INPUT_BYTES = 400 + 12 * SIZE  # of memory for a pair while it is estimated, beside its vectors


class Estimated(NamedTuple):
    """What is estimated of pairs.

    Attributes:
        bands: (m,) int64, differences less one.
        acceptance: (m,) float64, the chance that the judge accepts the pair.
    """

    bands: np.ndarray
    acceptance: np.ndarray

    def take(self, rows: np.ndarray) -> Estimated:
        """Some of the pairs: their indices, or a mask (m,) bool."""
        return Estimated(self.bands[rows], self.acceptance[rows])


@dataclass(frozen=True)
class PairEstimate:
    """Estimates pairs of images that are indices into the sorted ids.

    Attributes:
        model: of the labelled pairs.
        record: of earlier batches.
        vectors, captions: of the images.
        memory: for a block of pairs.
    """

    model: DifferenceModel
    record: Record
    vectors: Vectors
    captions: Captions
    memory: WorkingMemory

    def estimate(self, c: Candidates) -> Estimated:
        """What is estimated of candidates, a block of them at a time."""
        rows = self.memory.rows(INPUT_BYTES + 2 * self.vectors.row_bytes)
        result = Estimated(np.zeros(len(c), np.int64), np.zeros(len(c)))
        factor = factors(self.record)
        for start in range(0, len(c), rows):
            block = slice(start, start + rows)
            queries, targets = c.queries[block], c.targets[block]
            cosines = self.vectors.gather(queries, targets).similarities(queries, targets)[:, : len(ENCODER_ROLES)]
            inputs = np.column_stack([cosines, self.captions.compare(queries, targets)])
            result.bands[block], result.acceptance[block] = self.model.judge(inputs, factor)
        return result


def read_estimate(
    params: Params, store: Store, image_ids: pa.Array, vectors: Vectors, folder: Path, memory: WorkingMemory
) -> PairEstimate | None:
    """The estimate that `select.differences` names, for some images; None where there is none for these encoders.

    Args:
        image_ids: (p) strings, sorted.
        vectors: of these images.
        folder: for the captions' signatures.
        memory: for blocks.
    Raises:
        ConfigError: the file is no estimate.
    """
    if params.select.differences is None:
        return None
    model = read_model(Path(params.select.differences))
    if unfit_reason(model, stored_revisions(params, store), mined_windows(params)) is not None:
        return None
    record = read_record(store, model.most, params.open_run.batch)
    captions = read_captions(store, image_ids, folder / "captions", memory)
    return PairEstimate(model, record, vectors, captions, memory)


def stored_revisions(params: Params, store: Store) -> dict[str, str]:
    """Encoder -> revision of its stored vectors, of those that an estimate reads; without those that have none."""
    import pyarrow.parquet as pq

    result: dict[str, str] = {}
    for encoder in (str(e) for e in ENCODER_ROLES if e in params.embed.encoders):
        for stem in store.embedded_shards(encoder)[:1]:
            schema = pq.read_schema(store.folder("data", "embeddings", encoder, f"{stem}.parquet"))
            result[encoder] = (schema.metadata or {}).get(b"revision", b"").decode()
    return result


def mined_windows(params: Params) -> dict[str, tuple[float, float]]:
    """Encoder -> (low, high) of `mine.windows`."""
    windows = params.mine.windows.items()
    return {str(encoder): (window.low, window.high) for encoder, window in windows if encoder in ENCODER_ROLES}


def estimate_note(params: Params, store: Store) -> str | None:
    """A sentence for the report where `select.differences` is not used although pairs are to be drawn by it."""
    config = params.select
    if config.bands_by != "differences":
        return None
    why = "select.differences is empty"
    if config.differences is not None:
        model = read_model(Path(config.differences))
        reason = unfit_reason(model, stored_revisions(params, store), mined_windows(params))
        if reason is None:
            return None
        why = f"{config.differences} does not fit: {reason}"
    return (
        f"pairs are selected by select.agreement, not by how much they differ: {why}; "
        "`python -m tasks calibrate --differences` fits an estimate to your encoders and windows"
    )


def read_record(store: Store, most: int, batch: str | None) -> Record:
    """What the judge accepted of the pairs of all other batches, by what was estimated when they were selected.

    A batch without triplets was not judged, and says nothing.
    """
    import pyarrow.compute as pc

    expected, accepted = np.zeros(most), np.zeros(most)
    # a renewed triplet lies in the file of the run that renewed it
    all_ids = store.read_table("triplets", ["pair_id"]).column("pair_id")
    pair_ids = pc.unique(all_ids) if len(all_ids) else None
    for path in store.table_files("pairs"):
        if pair_ids is None or path.stem == batch or not store.batch_files("triplets", path.stem):
            continue
        columns = ["pair_id", "estimated_differences", "estimated_acceptance"]
        for pairs in store.iter_blocks(path, "pairs", columns, rows=ROW_GROUP_ROWS):
            pairs = pairs.filter(pc.is_valid(pairs.column("estimated_differences")))
            bands = pairs.column("estimated_differences").to_numpy().astype(np.int64) - 1
            is_accepted = pc.is_in(pairs.column("pair_id"), value_set=pair_ids).to_numpy().astype(np.float64)
            known = (bands >= 0) & (bands < most)
            chance = pairs.column("estimated_acceptance").to_numpy().astype(np.float64)
            expected += np.bincount(bands[known], chance[known], minlength=most)
            accepted += np.bincount(bands[known], is_accepted[known], minlength=most)
    return Record(expected, accepted)
