"""What a run may renew of a stage: every row that a model made and about which people did not decide.

A run and `python -m tasks renew --dry-run` both ask here, so that the one does what the other says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tasks.config import Params
from tasks.renewal.makers import MADE
from tasks.renewal.plan import BLOCK, Ends, decided_by_people, pairs_about, reversed_id, units_by_key
from tasks.store import Store


def renewable_units(
    store: Store, stage: str, batch: str, ends: Collection[Ends] = (), described: Collection[str] = ()
) -> dict[str, str]:
    """Key of a row -> the unit that it belongs to; rows that stay as they are have none.

    Args:
        store: of the worktree.
        stage: recaption, caption or judge.
        batch: the run's.
        ends: (query, target) of pairs about which this run's verdicts are.
        described: of judge: pair ids, both directions, that captioning renews and that are judged again anyway.
    """
    if stage == "recaption":
        return {image_id: image_id for image_id in _images_without_caption(store)}
    units = units_by_key(store, decided_by_people(store, ends) | set(described))
    if stage == "caption":
        return units
    return {pair_id: pair_id for pair_id in _captioned(store, batch) if pair_id in units}


def both_directions(store: Store, pair_ids: Collection[str]) -> dict[str, str]:
    """Pair id, and id of the reversed pair -> pair id, of some pairs."""
    pairs = pairs_about(store, pair_ids).select(["pair_id", "query_image_id", "target_image_id"]).to_pylist()
    return {reversed_id(pair): pair["pair_id"] for pair in pairs} | {p["pair_id"]: p["pair_id"] for p in pairs}


def rows_of_file(params: Params, stage: str) -> int:
    """How many units a file of renewed rows holds, a count."""
    return params.recaption.chunk_images if stage == "recaption" else params.caption.chunk_pairs


def _images_without_caption(store: Store) -> Iterable[str]:
    """Ids of all images whose source gave no caption."""
    for block in store.iter_blocks(store.table_files("images"), "images", ["image_id", "caption"], rows=BLOCK):
        for image_id, caption in zip(*block.to_pydict().values(), strict=True):
            if not caption:
                yield image_id


def _captioned(store: Store, batch: str) -> Iterable[str]:
    """Ids of the pairs with texts of other batches: judge judges texts that are there."""
    own = set(store.batch_files("captioned", batch))
    files = [path for path in store.table_files(MADE["caption"].table) if path not in own]
    for block in store.iter_blocks(files, "captioned", ["pair_id"], rows=BLOCK):
        yield from block.column("pair_id").to_pylist()
