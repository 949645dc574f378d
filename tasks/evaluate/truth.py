"""Compare triplets with the sample world's truth file."""

from __future__ import annotations

from pathlib import Path

from tasks.pages.week_figures import scenes_by_id
from tasks.prompts.styles import PARTIAL_STYLES
from tasks.sample.quality import accepted_shares
from tasks.store import Store

COLUMNS = ["query_image_id", "target_image_id", "instructions", "styles", "negative_image_ids"]


def truth_report(path: Path, store: Store) -> dict[str, dict[str, float | int]]:
    """The two sections of reports/evaluation.json on a version's triplets, of all weeks together.

    Each week's figures stand in version.json (tasks/pages/week_figures.py) and are of the same definitions.

    Args:
        path: JSON lines {"path", "scene", ...}.
        store: with the version's images and triplets.
    Returns:
        "truth": shares `instructions_true`, `instructions_complete` and `negatives_also_right`, as of
        `accepted_shares`, a share of nothing left out; "truth_counts": `texts` and (text, mined negative) `negatives`.
    Raises:
        ConfigError: no such file.
    """
    triplets = store.read_table("triplets", COLUMNS).to_pylist()
    shares = accepted_shares(triplets, scenes_by_id(store, path).get, PARTIAL_STYLES)
    named = {
        "instructions_true": shares["true_share"],
        "instructions_complete": shares["complete_share"],
        "negatives_also_right": shares["negatives_also_right"],
    }
    return {
        "truth": {name: value for name, value in named.items() if value is not None},
        "truth_counts": {
            "texts": sum(len(t["instructions"]) for t in triplets),
            "negatives": sum(len(t["instructions"]) * (len(t["negative_image_ids"]) - 1) for t in triplets),
        },
    }
