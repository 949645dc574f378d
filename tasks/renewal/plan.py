"""Which stale rows a run renews: those that fit the conditions, the oldest first, at most a budget of them.

The plan is made once in a run, before any old row goes, and kept in .run/renew/<stage>.json: a part that starts later,
or again after a kill, works on the same rows. What is renewed is a unit: an image for recaption, a pair for caption and
judge (with the reversed pair that `caption.reverse` made of it).

Rows about which people decided are never renewed: what they decided wins over any model (tasks/judge/reviewed.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import Condition, Params, RenewRows, parse_where
from tasks.config.renew import COLUMNS
from tasks.locks import exclusive, lock_wait_s
from tasks.names import stable_id
from tasks.reasons import REVIEWED, REVIEWED_WRONG
from tasks.renewal.encoders import encoded_counts
from tasks.renewal.makers import MadeRow, Maker, batch_order, batches_of, is_stale, made_rows
from tasks.store import Store
from tasks.store.chunks import Chunk, is_of_part

if TYPE_CHECKING:
    import pyarrow as pa

Ends = tuple[str, str]  # ids of the query image and of the target image
ENDS = ("query_image_id", "target_image_id")
BLOCK = 20_000  # rows in memory at a time
CHUNKS_MAX = 20_000  # files of renewed rows that one run writes; what would be in further ones is left
# Numbers of a batch's files that hold renewed rows: far above those of new rows, and apart for the two kinds of work of
# judge, which follows caption's files, too.
FIRST_CHUNK = {"recaption": 50_000, "caption": 50_000, "judge": 70_000}


@dataclass(frozen=True)
class Plan:
    """What a run renews of one stage.

    Attributes:
        stage: its name.
        units: ids, the oldest first.
        left: stale units that the conditions or the budget leave as they are, a count.
        chunk_rows: units in one file, a count.
        batches: unit -> the batch that made it.
    """

    stage: str
    units: tuple[str, ...] = ()
    left: int = 0
    chunk_rows: int = 1
    batches: Mapping[str, str] = field(default_factory=dict)

    def chunks(self, part: tuple[int, int] | None = None) -> list[Chunk]:
        """The files of a part, (i, n) from 1; `rows` are of `units`."""
        first, count = FIRST_CHUNK[self.stage], len(self.units)
        starts = enumerate(range(0, count, self.chunk_rows), start=first)
        chunks = (Chunk(number, slice(start, min(start + self.chunk_rows, count))) for number, start in starts)
        return [chunk for chunk in chunks if is_of_part(chunk.number, part)]

    def is_own(self, chunk: Chunk) -> bool:
        """Whether a file holds renewed rows of this plan."""
        first = FIRST_CHUNK[self.stage]
        return first <= chunk.number < first + CHUNKS_MAX

    def units_of(self, chunks: Iterable[Chunk]) -> list[str]:
        """The units in some files."""
        return [unit for chunk in chunks for unit in self.units[chunk.rows]]

    def sentence(self) -> str:
        """For the stage's report."""
        oldest = f", the oldest of {self.batches[self.units[0]]}" if self.units else ""
        return (
            f"renewal of {self.stage}: {len(self.units)} rows{oldest}; {self.left} more are stale and stay as they are"
        )


def wanted(params: Params, stage: str) -> RenewRows | None:
    """What `renew` asks of a stage; None where it asks nothing, and in a takedown by hand, which asks no model."""
    rows: RenewRows | None = getattr(params.renew, stage)
    return None if params.open_run.takedown else rows


def lost_limit(params: Params, stage: str) -> tuple[str, float]:
    """Name and value of the largest share of a stage's renewed rows that may be lost."""
    rows: RenewRows | None = getattr(params.renew, stage)
    return f"renew.{stage}.lost_share_max", rows.lost_share_max if rows else 1.0


def fits(row: MadeRow, conditions: Sequence[Condition], stage: str) -> bool:
    """Whether a row meets all conditions. A prompt is named by the beginning of its hash, all else by equality."""
    made_on = "-".join(row.batch.split(".")[:3])
    for name, value in conditions:
        if name == "made_before":
            is_met = made_on < value
        elif name == "made_after":
            is_met = made_on > value
        elif name == "batch":
            is_met = row.batch == value
        else:
            found = row.made.get(COLUMNS[stage][name])
            is_met = found is not None and (found.startswith(value) if name == "prompt" else found == value)
        if not is_met:
            return False
    return True


@dataclass(frozen=True)
class Wish:
    """What is asked for: conditions, the budget (units; None: no limit), and the maker of now."""

    conditions: Sequence[Condition]
    budget: int | None
    maker: Maker

    @classmethod
    def of(cls, rows: RenewRows, stage: str, maker: Maker) -> Wish:
        """What a section of `renew` asks for."""
        return cls(parse_where(rows.where, stage), rows.budget, maker)


def choose(rows: Iterable[MadeRow], wish: Wish, stage: str, unit_of: Mapping[str, str] | None = None) -> Plan:
    """The units to renew, the oldest first, then by id; pure.

    Args:
        rows: of earlier batches.
        wish: which.
        stage: whose rows they are.
        unit_of: key -> unit; keys that are missing are of no unit that may be renewed. None: each key is its unit.
    Returns:
        A plan with chunks of one row.
    """
    stale: dict[str, str] = {}  # unit -> batch
    chosen: set[str] = set()
    for row in rows:
        unit = row.key if unit_of is None else unit_of.get(row.key)
        if unit is None or not is_stale(row.made, wish.maker):
            continue
        if unit not in stale or batch_order(row.batch) < batch_order(stale[unit]):
            stale[unit] = row.batch
        if fits(row, wish.conditions, stage):
            chosen.add(unit)
    order = sorted(chosen, key=lambda unit: (batch_order(stale[unit]), unit))
    units = tuple(order if wish.budget is None else order[: wish.budget])
    return Plan(stage, units, len(stale) - len(units), 1, {unit: stale[unit] for unit in units})


def choose_plan(store: Store, wish: Wish, stage: str, batch: str, unit_of: Mapping[str, str], chunk_rows: int) -> Plan:
    """The plan of a run that has none yet; nothing is kept. Arguments as of `make_plan`."""
    most = CHUNKS_MAX * chunk_rows
    wish = Wish(wish.conditions, min(wish.budget or most, most), wish.maker)
    return replace(choose(earlier_rows(store, stage, batch), wish, stage, unit_of), chunk_rows=chunk_rows)


def make_plan(store: Store, wish: Wish, stage: str, batch: str, unit_of: Mapping[str, str], chunk_rows: int) -> Plan:
    """The run's plan of a stage: the one that was made before, else a new one, which is kept.

    Args:
        store: of the worktree.
        wish: what is asked for.
        stage: recaption, caption or judge.
        batch: the run's; its own rows are not renewed.
        unit_of: as of `choose`.
        chunk_rows: units in one file, a count.
    Raises:
        TransientError: another part has been choosing for a long time.
    """
    wait_s = lock_wait_s()
    lock = store.folder(".run", "locks", f"renew-plan-{stage}")
    problem = f"{lock}: another part has been choosing rows to renew for {wait_s:.0f} s; end it, then run again"
    with exclusive(lock, wait_s, problem):  # a plan of what the other part has left would give its files other units
        if (known := read_plan(store, stage)) is not None:
            return known
        plan = choose_plan(store, wish, stage, batch, unit_of, chunk_rows)
        facts = {"units": plan.units, "left": plan.left, "chunk_rows": chunk_rows, "batches": dict(plan.batches)}
        store.write_bytes(plan_path(store, stage), json.dumps(facts).encode())
        return plan


def earlier_rows(store: Store, stage: str, batch: str) -> Iterator[MadeRow]:
    """The rows of a stage that the runs before made, the oldest batch first."""
    for earlier in batches_of(store, stage):
        if earlier != batch:
            yield from made_rows(store, stage, earlier)


def plan_path(store: Store, stage: str) -> Path:
    """Where a stage's plan lies."""
    return store.folder(".run", "renew", f"{stage}.json")


def read_plan(store: Store, stage: str) -> Plan | None:
    """The plan that was made in this run; None where none was."""
    path = plan_path(store, stage)
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    return Plan(stage, tuple(facts["units"]), facts["left"], facts["chunk_rows"], facts["batches"])


def renewed_counts(store: Store) -> dict[str, int]:
    """stage -> units that this run's plans renew, `embed <role>` -> images of earlier versions that it encodes for the
    next index; without those that renew none. A run with either is published, also without a new triplet.
    """
    plans = (read_plan(store, stage) for stage in FIRST_CHUNK)
    return {p.stage: len(p.units) for p in plans if p is not None and p.units} | encoded_counts(store)


# --- which pairs -----------------------------------------------------------------------------------------------------


def decided_by_people(store: Store, ends: Collection[Ends] = ()) -> set[str]:
    """Pairs about which people decided: withdrawn as wrong, accepted against the judge, with a text of theirs, or
    without a negative.

    Args:
        store: of the worktree.
        ends: (query, target) of pairs about which this run's verdicts are, applied or not.
    """
    ids, decided = set[str](), set(ends)
    for block in store.iter_blocks(store.dropped_files("judge"), "dropped", ["key", "reason", "detail"], rows=BLOCK):
        for row in block.to_pylist():
            if row["reason"] in REVIEWED:
                ids.update(row["key"].split(":"))
            if row["reason"] == REVIEWED_WRONG:
                detail = json.loads(row["detail"])
                decided.add((detail["query"], detail["target"]))
    accepted = [path for path in store.table_files("triplets") if path.stem.endswith("-reviewed")]
    pairs = set(store.read(accepted, "triplets", ["pair_id"]).column("pair_id").to_pylist())
    if not ids and not decided:
        return pairs
    return pairs | _pairs_of(store, "triplets", ids, decided) | _pairs_of(store, "pairs", set(), decided)


def _pairs_of(store: Store, table: str, triplet_ids: Collection[str], ends: Collection[Ends]) -> set[str]:
    columns = ["pair_id", *ENDS, *(["triplet_id"] if table == "triplets" else [])]
    pairs = set()
    for block in store.iter_blocks(store.table_files(table), table, columns, rows=BLOCK):
        for row in block.to_pylist():
            if row.get("triplet_id") in triplet_ids or (row[ENDS[0]], row[ENDS[1]]) in ends:
                pairs.add(row["pair_id"])
    return pairs


def reversed_id(pair: Mapping[str, str]) -> str:
    """The id of the pair that leads from a pair's target back to its query (`caption.reverse`)."""
    return stable_id(pair[ENDS[1]], pair[ENDS[0]])


def units_by_key(store: Store, without: Collection[str] = ()) -> dict[str, str]:
    """pair id, or id of the reversed pair -> pair id; a pair of its own is no reversed one.

    Args:
        store: of the worktree.
        without: pairs, or reversed ones, that are left out together with the other direction.
    """
    units: dict[str, str] = {}
    backwards: dict[str, str] = {}
    for block in store.iter_blocks(store.table_files("pairs"), "pairs", ["pair_id", *ENDS], rows=BLOCK):
        for pair in block.to_pylist():
            units[pair["pair_id"]] = pair["pair_id"]
            backwards[reversed_id(pair)] = pair["pair_id"]
    both = backwards | units
    left_out = {unit for key, unit in both.items() if key in without or unit in without}
    return {key: unit for key, unit in both.items() if unit not in left_out}


def pairs_about(store: Store, keys: Collection[str]) -> pa.Table:
    """Rows of table `pairs` whose id, or whose reversed pair's id, is one of `keys`."""
    import pyarrow as pa

    tables = [store.read([], "pairs")]
    for block in store.iter_blocks(store.table_files("pairs") if keys else [], "pairs", rows=BLOCK):
        ends = block.select(["pair_id", *ENDS]).to_pylist()
        named = [pair["pair_id"] in keys or reversed_id(pair) in keys for pair in ends]
        tables.append(block.filter(pa.array(named, pa.bool_())))
    return pa.concat_tables(tables)
