"""Renewal of captioned pairs: which pairs of earlier batches are described again, and what goes once they are.

What the models of now reject is dropped with its reason, as in a week of its own: the old row goes all the same, so
that renewing everything gives what these models would have made in the first place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.caption.chunk import CaptionSetup
from tasks.caption.rows import maker
from tasks.config import Params
from tasks.names import batch_name
from tasks.renewal.plan import (
    Plan,
    Wish,
    lost_limit,
    make_plan,
    pairs_about,
    read_plan,
    reversed_id,
    wanted,
)
from tasks.renewal.supersede import supersede
from tasks.renewal.units import renewable_units, rows_of_file
from tasks.reviews.verdicts import read_verdicts
from tasks.store import Store

if TYPE_CHECKING:
    import pyarrow as pa


def plan_captions(params: Params, store: Store, load: Callable[[], CaptionSetup]) -> Plan:
    """The pairs that this run describes again; none where `renew.caption` is empty, and then nothing is loaded.

    Args:
        params: the run's.
        store: of the worktree.
        load: loads the models; the plan needs to know who they are.
    """
    rows = wanted(params, "caption")
    if rows is None:
        return Plan("caption")
    if (known := read_plan(store, "caption")) is not None:
        return known
    wish = Wish.of(rows, "caption", maker(load()))
    batch, ends = batch_name(params), {(v.query, v.target) for v in read_verdicts(store.root)}
    units = renewable_units(store, "caption", batch, ends)
    return make_plan(store, wish, "caption", batch, units, rows_of_file(params, "caption"))


def renewed_pairs(store: Store, plan: Plan) -> pa.Table:
    """The plan's pairs in its order; columns pair_id, query_image_id, target_image_id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    pairs = pairs_about(store, set(plan.units)).select(["pair_id", "query_image_id", "target_image_id"])
    rows = pc.index_in(pa.array(plan.units, pa.string()), value_set=pairs.column("pair_id").combine_chunks())
    return pairs.take(rows)


def remove_renewed(params: Params, store: Store, plan: Plan, pairs: pa.Table) -> int:
    """Remove the old rows of those pairs that are described again by now; returns their count.

    Args:
        pairs: of `renewed_pairs`.
    """
    batch, forward, backward = batch_name(params), set[str](), set[str]()
    for chunk in plan.chunks():
        if store.table_path("captioned", batch, chunk.number).exists():
            rows = pairs.slice(chunk.rows.start, chunk.rows.stop - chunk.rows.start).to_pylist()
            forward.update(pair["pair_id"] for pair in rows)
            backward.update(reversed_id(pair) for pair in rows)
    # a reversed pair that is a pair of its own keeps its rows
    backward -= set(pairs_about(store, backward).column("pair_id").to_pylist())
    return supersede(store, "caption", batch, forward | backward, lost_limit(params, "caption"))
