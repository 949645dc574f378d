"""Whether a dataset run has anything to publish. Light: no model is imported, so that Airflow may ask it too."""

from __future__ import annotations

from tasks.config import Params
from tasks.errors import NothingToDo
from tasks.fingerprints.takedown import withdrawn_ids
from tasks.names import batch_name
from tasks.reasons import REVIEWED
from tasks.renewal.plan import renewed_counts
from tasks.store import Store


def summarize_run(store: Store, batch: str) -> str:
    """What this run took in and dropped, in a sentence: nothing else keeps it when no version is made."""
    images = store.read_table("images", ["image_id"], batch).num_rows
    pairs = store.read_table("pairs", ["pair_id"], batch).num_rows
    drops = [
        f"{stage}: " + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        for stage, reasons in store.count_drops(batch=batch).items()
    ]
    return f"New images {images}, new pairs {pairs}; left out by {'; '.join(drops) or 'no stage: nothing'}."


def require_triplets(params: Params, store: Store) -> int:
    """The count of new triplets.

    Raises:
        NothingToDo: dry_run, or no new triplet, nothing withdrawn or renewed, and no change by people's verdicts.
    """
    batch = batch_name(params)
    count = store.read_table("triplets", ["triplet_id"], batch).num_rows
    withdrawn, renewed = len(withdrawn_ids(store, batch)), sum(renewed_counts(store).values())
    if params.open_run.dry_run:
        raise NothingToDo(f"dry run: {count} triplets made, nothing published")
    if not (count or withdrawn or renewed or count_reviewed(store, batch)):
        raise NothingToDo(f"no new triplet in {batch}: no version, no training. {summarize_run(store, batch)}")
    return count


def count_reviewed(store: Store, batch: str) -> int:
    """Changes that people's verdicts made to triplets of earlier versions in this run: triplets, texts, negatives."""
    reasons = store.count_drops("judge", batch).get("judge", {})
    return sum(reasons.get(reason, 0) for reason in REVIEWED)
