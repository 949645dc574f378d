"""Renewal of verdicts: what captioning renewed is judged again, and with `renew.judge` what another judge decided.

Of the second kind the instructions stay as they are; each captioned row of an earlier batch whose triplet, or whose
rejection, another judge or prompt made is put to the judge of now. A triplet that no longer passes is withdrawn with
its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.config import Params
from tasks.judge.rows import Ends
from tasks.names import batch_name
from tasks.renewal.makers import Maker
from tasks.renewal.plan import (
    BLOCK,
    Plan,
    Wish,
    lost_limit,
    make_plan,
    pairs_about,
    read_plan,
    wanted,
)
from tasks.renewal.supersede import supersede
from tasks.renewal.units import both_directions, renewable_units, rows_of_file
from tasks.reviews.verdicts import read_verdicts
from tasks.store import Store
from tasks.store.chunks import Chunk
from tasks.store.tables import names_any_id

if TYPE_CHECKING:
    import pyarrow as pa


class JudgeRenewal:
    """What one run judges again, and the rows that it needs for that.

    Attributes:
        described: the plan of stage caption, whose rows are judged again because they are new.
        plan: of captioned rows that stay as they are.
    """

    def __init__(self, params: Params, store: Store, load: Callable[[], Maker]) -> None:
        """`load` loads the judge and says who it is; it is called only where `renew.judge` asks for a plan."""
        self.params, self.store, self.batch = params, store, batch_name(params)
        self.described = read_plan(store, "caption") or Plan("caption")
        self._described_keys = both_directions(store, set(self.described.units))
        self.plan = self._make_plan(load)
        self._rows: pa.Table | None = None

    def _make_plan(self, load: Callable[[], Maker]) -> Plan:
        rows = wanted(self.params, "judge")
        if rows is None:
            return Plan("judge")
        if (known := read_plan(self.store, "judge")) is not None:
            return known
        ends = {(v.query, v.target) for v in read_verdicts(self.store.root)}
        units = renewable_units(self.store, "judge", self.batch, ends, self._described_keys)
        wish = Wish.of(rows, "judge", load())
        return make_plan(self.store, wish, "judge", self.batch, units, rows_of_file(self.params, "judge"))

    def pairs(self, of_batch: pa.Table) -> pa.Table:
        """The batch's pairs, and those of the rows that are judged again."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self.described.units and not self.plan.units:
            return of_batch
        renewed = pairs_about(self.store, {*self.described.units, *self.plan.units})
        known = names_any_id(renewed, of_batch.column("pair_id").to_pylist(), ["pair_id"])
        return pa.concat_tables([of_batch, renewed.filter(pc.invert(known))])

    def is_renewed(self, chunk: Chunk) -> bool:
        """Whether a chunk holds rows that are judged again."""
        return self.plan.is_own(chunk) or self.described.is_own(chunk)

    def captioned(self, chunk: Chunk) -> list[dict[str, Any]]:
        """The captioned rows of a chunk of the plan, as rows of this batch; by pair id."""
        import pyarrow as pa

        if self._rows is None:
            tables = [self.store.read([], "captioned")]
            for path in self.store.table_files("captioned"):
                if path not in self.store.batch_files("captioned", self.batch):
                    for block in self.store.iter_blocks(path, "captioned", rows=BLOCK):
                        tables.append(block.filter(names_any_id(block, self.plan.units, ["pair_id"])))
            self._rows = pa.concat_tables(tables)
        units = self.plan.units[chunk.rows]
        rows = self._rows.filter(names_any_id(self._rows, units, ["pair_id"])).to_pylist()
        return [{**row, "batch": self.batch} for row in rows]

    def without_own(self, known: Mapping[Ends, str], rows: Sequence[Mapping[str, Any]]) -> set[Ends]:
        """Ends of earlier triplets, less those of the rows' own triplets, which these rows replace."""
        own = {(row["query_image_id"], row["target_image_id"]): row["pair_id"] for row in rows}
        return {ends for ends, pair_id in known.items() if not pair_id or own.get(ends) != pair_id}

    def remove_old(self) -> int:
        """Remove old triplets and rejections of what is judged again by now; returns their count."""
        done = set(self.described.units_of(self._done(self.described)))
        described = {key for key, unit in self._described_keys.items() if unit in done}
        count = supersede(self.store, "judge", self.batch, described, lost_limit(self.params, "caption"))
        again = set(self.plan.units_of(self._done(self.plan)))
        return count + supersede(self.store, "judge", self.batch, again, lost_limit(self.params, "judge"))

    def _done(self, plan: Plan) -> list[Chunk]:
        """The chunks of a plan whose triplets are written."""
        return [c for c in plan.chunks() if self.store.table_path("triplets", self.batch, c.number).exists()]
