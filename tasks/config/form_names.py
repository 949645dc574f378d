"""The short names of the trigger form's fields, and the parameters that they stand for.

The Airflow form (plugins/megapairs/form.py) shows them; `python -m tasks open_run --conf` takes them too, so that what
`python -m tasks calibrate` prints is valid at every door.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Name of the field -> dotted key of the parameter.
DATASET_FORM: dict[str, str] = {
    "sources": "ingest.sources",
    "limit": "open_run.limit",
    "takedown": "open_run.takedown",
    "renew": "renew",
    "dry_run": "open_run.dry_run",
    "date": "open_run.date",
    "dataset": "open_run.dataset",
    "caption_share_min": "validate.images.caption_share_min",
    "neighbours": "mine.neighbours",
    "window_semantic": "mine.windows.semantic",
    "window_pattern": "mine.windows.pattern",
    "window_caption": "mine.windows.caption",
    "pairs_per_query": "select.pairs_per_query",
    "pairs_per_batch": "select.pairs_per_batch",
    "negatives": "select.negatives",
    "instructions_min": "caption.instructions_min",
    "judge_threshold": "judge.threshold",
}
MODEL_FORM: dict[str, str] = {
    "base_model": "train.base_model",
    "steps": "train.steps",
    "batch_triplets": "train.batch_triplets",
    "learning_rate": "train.learning_rate",
    "benchmark": "evaluate.benchmark",
    "min_gain": "promote.min_gain",
    "dry_run": "open_run.dry_run",
    "date": "open_run.date",
}
FIELD_KEYS = {**DATASET_FORM, **MODEL_FORM}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' did you mean 'limit'?' for a name that is nearly a known one; empty where none is near.

    Args:
        name: what was given.
        known: all names that would do.
    """
    close = difflib.get_close_matches(name, sorted(set(known)), n=2)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
