"""The numbers that a suite's `$PARAMETER` entries name: those of `validate.<table>`, and limits of the stages before.

A gate that had numbers of its own for what another section sets already would check less than the run was asked for,
as soon as somebody changed that section. So the limits of ingest, mine, select and judge are taken from there.
"""

from __future__ import annotations

import numpy as np

from tasks.config import ENCODER_ROLES, Params
from tasks.validate.rows import Table

COSINES = (-1.0, 1.0)  # where an encoder has no window; that it has none is an expectation of its own


def stored(value: float) -> float:
    """The number as a float32 column holds it: rounding keeps order, so a stored value may equal a rounded limit."""
    return float(np.float32(value))


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
        for role in ENCODER_ROLES:
            low, high = windows.get(role, COSINES)
            numbers |= {f"{role}_low": stored(low), f"{role}_high": stored(high)}
    else:
        numbers["yes_min"] = stored(max(numbers["yes_min"], params.judge.threshold))
        numbers["instructions_min"] = max(numbers["instructions_min"], params.judge.instructions_min)
    return numbers
