"""Figures of each weekly batch: what the judge let pass, how varied the texts are and, for the sample world, the truth.

Never pooled: a good first week hides a bad second one. version.json has them as `weeks` (tasks/publish), the card, the
demo's summary and the gate's mail show them; `benchmarks/worlds.py` takes its shares from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError
from tasks.names import stable_id
from tasks.prompts.styles import PARTIAL_STYLES
from tasks.prompts.text_figures import text_figures
from tasks.renewal.plan import pairs_about
from tasks.sample.quality import accepted_shares, negative_shares, read_scenes, rejected_shares, share

if TYPE_CHECKING:
    from tasks.sample.scenes import Scene
    from tasks.store import Store


def weekly_figures(
    store: Store, truth: Path | None = None, batches: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """batch -> its figures (`week_figures`), in order.

    Args:
        store: of a clone, a worktree, or any folder with the factory's tables.
        truth: the sample world's truth file; without it only what the judge and the texts tell is measured.
        batches: which; those that have captioned pairs when None.
    Raises:
        ConfigError: no such truth file.
    """
    if batches is None:
        batches = sorted(set(store.read_table("captioned", ["batch"]).column("batch").to_pylist()))
    scenes = None if truth is None else scenes_by_id(store, truth)
    return {batch: week_figures(store, batch, scenes) for batch in batches}


def scenes_by_id(store: Store, truth: Path) -> dict[str, Scene]:
    """image id -> scene, of the images that the truth file names.

    Raises:
        ConfigError: no such file.
    """
    if not truth.is_file():
        raise ConfigError(
            f"{truth}: missing; 'evaluate.truth' names the sample world's truth file, leave it empty for any other "
            "source"
        )
    scenes = read_scenes(truth)
    images = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
    paths = [(i, uri.partition(":")[2]) for i, uri in zip(images["image_id"], images["source_uri"], strict=True)]
    return {image_id: scenes[path] for image_id, path in paths if path in scenes}


def week_figures(store: Store, batch: str, scenes: dict[str, Scene] | None = None) -> dict[str, Any]:
    """Figures of one batch.

    Args:
        store: with the batch's captioned pairs, pairs and triplets.
        batch: its name.
        scenes: image id -> scene, where the truth is known.
    Returns:
        pairs, triplets: captioned pairs and triplets that the judge accepted, counts; yield: their ratio;
        shortcut_share: of the triplets where it was measured, those whose text or image alone finds the target; those
        of `text_figures`; with `scenes` true_share, complete_share, negatives_also_right, negatives (the same by
        encoder and by kind), written_true_share and false_rejection_share (tasks/sample/quality.py). A share of nothing
        is None.
    """
    columns = ["triplet_id", "pair_id", "query_image_id", "target_image_id", "instructions", "styles", "found_by"]
    columns += ["negative_image_ids", "mined_by"]
    by_judge = [path for path in store.batch_files("triplets", batch) if path != store.reviewed_path(batch)]
    triplets = store.read(by_judge, "triplets", columns).to_pylist()
    captioned = store.read_table("captioned", ["pair_id"], batch).num_rows
    known = [t["found_by"] for t in triplets if t["found_by"] is not None]
    figures: dict[str, Any] = {
        "pairs": captioned,
        "triplets": len(triplets),
        "yield": share(len(triplets), captioned),
        "shortcut_share": share(sum("text" in modes or "image" in modes for modes in known), len(known)),
        **text_figures(triplets),
    }
    if scenes is None:
        return figures
    dropped = store.read_dropped("judge", batch).to_pylist()
    written = written_pairs(store, batch)
    figures |= accepted_shares(triplets, scenes.get, PARTIAL_STYLES)
    figures["negatives"] = negative_shares(triplets, scenes.get)
    return figures | rejected_shares(written, triplets, dropped, scenes.get, PARTIAL_STYLES)


def written_pairs(store: Store, batch: str) -> list[dict[str, Any]]:
    """The batch's captioned rows with the images of their pairs; rows of reversed pairs with the images exchanged."""
    ends = ["pair_id", "query_image_id", "target_image_id", "negative_image_ids"]
    pairs: dict[str, dict[str, Any]] = {}
    rows = store.read_table("captioned", ["pair_id", "instructions", "styles"], batch).to_pylist()
    known = store.read_table("pairs", ends, batch).to_pylist()
    renewed = {row["pair_id"] for row in rows} - {pair["pair_id"] for pair in known}  # or reversed
    for pair in [*pairs_about(store, renewed).select(ends).to_pylist(), *known]:
        query, target = pair["query_image_id"], pair["target_image_id"]
        back = {"query_image_id": target, "target_image_id": query}
        pairs.setdefault(
            stable_id(target, query),
            {**back, "negative_image_ids": [target, *pair["negative_image_ids"][1:]]},
        )
        pairs[pair["pair_id"]] = pair
    return [{**pairs[row["pair_id"]], **row} for row in rows if row["pair_id"] in pairs]
