"""The numbers that a suite's `$PARAMETER` entries name: those of `validate.<table>`, and limits of the stages before.

A gate that had numbers of its own for what another section sets already would check less than the run was asked for,
as soon as somebody changed that section. So the limits of ingest, mine, select and judge are taken from there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tasks.config import MINER_ROLES, Params
from tasks.validate.rows import Table

COSINES = (-1.0, 1.0)  # where an encoder has no window; that it has none is an expectation of its own


def stored(value: float) -> float:
    """The number as a float32 column holds it: rounding keeps order, so a stored value may equal a rounded limit."""
    return float(np.float32(value))


def relaxed_limits(numbers: Mapping[str, float], figures: Mapping[str, float]) -> dict[str, float]:
    """The numbers with the limits of those shares lifted that `free_rows` or fewer rows make up.

    A share of a small batch says little. Never lifted: that every one of several rows breaks a rule.

    Args:
        numbers: of `suite_numbers`.
        figures: of the batch (tasks/validate/figures.py).
    """
    lifted, free = dict(numbers), numbers["free_rows"]
    quarantined = figures.get("quarantined_rows", 0.0)
    if quarantined <= free and (figures.get("quarantined_share", 0.0) < 1 or quarantined < 2):
        lifted["quarantined_share_max"] = 1.0
    for name in ("duplicate_share", "unreadable_share"):
        if figures.get(name, 0.0) * figures.get("looked_at", 0.0) <= free + 1e-6:
            lifted[f"{name}_max"] = 1.0
    if (1 - figures.get("caption_share", 1.0)) * figures.get("rows", 0.0) <= free + 1e-6:
        lifted["caption_share_min"] = 0.0
    return lifted


def suite_numbers(params: Params, table: Table) -> dict[str, float]:
    """Name -> number for one table's suite.

    Beside the keys of `validate.<table>`: max_side_px (images); rank_max and <encoder>_low, <encoder>_high (pairs: the
    last rank and the window that each encoder mined with). Of triplets, yes_min and instructions_min are the higher of
    the gate's and the judge's own.
    """
    numbers: dict[str, float] = getattr(params.validate_, table).model_dump()
    if table == "images":
        numbers["max_side_px"] = params.ingest.max_side_px
    elif table == "pairs":
        numbers["rank_max"] = params.mine.neighbours - 1
        windows = {str(role): (window.low, window.high) for role, window in params.mine.windows.items()}
        for role in MINER_ROLES:
            low, high = windows.get(role, COSINES)
            numbers |= {f"{role}_low": stored(low), f"{role}_high": stored(high)}
    else:
        numbers["yes_min"] = stored(max(numbers["yes_min"], params.judge.threshold))
        numbers["instructions_min"] = max(numbers["instructions_min"], params.judge.instructions_min)
        if numbers["same_content_max"] is None:
            numbers["same_content_max"] = 1.0
    return numbers
