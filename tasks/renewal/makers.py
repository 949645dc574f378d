"""Who made a row: models, revisions and prompts, as the tables name them; and which rows of earlier makers there are.

A row is stale when a column of its maker has another value than the maker of now. A column that is null (versions
before it lack it) says nothing; a row of which nothing is known is stale. A rejected row names its maker in `detail`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.reasons import RENEWED, REVIEWED
from tasks.store import Store
from tasks.store.tables import ROW_GROUP_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

Maker = Mapping[str, str]  # column -> value


@dataclass(frozen=True)
class MadeTable:
    """Where the rows lie that a stage's models make.

    Attributes:
        table: accepted rows.
        stage: whose dropped rows are the rejected ones.
        key: column that names what a row is about; the key of a dropped row, too.
        columns: that name the maker.
    """

    table: str
    stage: str
    key: str
    columns: tuple[str, ...]


MADE: dict[str, MadeTable] = {
    "recaption": MadeTable("captions", "recaption", "image_id", ("caption_source", "prompt_sha256")),
    "caption": MadeTable(
        "captioned",
        "caption",
        "pair_id",
        ("captioner", "captioner_revision", "writer", "writer_revision", "prompt_sha256"),
    ),
    "judge": MadeTable("triplets", "judge", "pair_id", ("judge", "judge_revision", "judge_prompt_sha256")),
}
NOT_MADE = (*REVIEWED, RENEWED, "duplicate", "taken_down")  # reasons of dropped rows on which no model decided


@dataclass(frozen=True)
class MadeRow:
    """One row as renewal sees it, or several of one maker.

    Attributes:
        key: what it is about; '' for several.
        batch: whose run made it.
        made: its maker's columns.
        rows: that it stands for, a count.
    """

    key: str
    batch: str
    made: Mapping[str, str | None]
    rows: int = 1


def is_stale(made: Mapping[str, str | None], maker: Maker) -> bool:
    """Whether a row was made by another maker than that of now; so is a row of which nothing is known."""
    known = {column: value for column in maker if (value := made.get(column)) is not None}
    return not known or any(value != maker[column] for column, value in known.items())


def batch_order(batch: str) -> tuple[int, ...]:
    """Sort key of batches: by date, then by the number after it."""
    return tuple(int(number) for number in batch.split(".") if number.isdecimal())


def batch_of(path: Path) -> str:
    """The batch whose run wrote a file, by its name: <batch>.parquet, <batch>-<chunk>.parquet, <batch>-reviewed."""
    return path.stem.partition("-")[0]


def batches_of(store: Store, stage: str) -> list[str]:
    """Batches that have rows of a stage, the oldest first."""
    made = MADE[stage]
    files = [*store.table_files(made.table), *store.dropped_files(made.stage)]
    return sorted({batch_of(path) for path in files}, key=batch_order)


def made_rows(store: Store, stage: str, batch: str) -> Iterator[MadeRow]:
    """The rows of a stage that one batch's run made: accepted ones, then rejected ones.

    A rejected row of before it named its maker has the maker of the batch's accepted rows, where that is one.
    """
    made = MADE[stage]
    makers: set[tuple[str | None, ...]] = set()
    # triplets that people accepted against the judge are no work of a judge
    files = [path for path in store.batch_files(made.table, batch) if path != store.reviewed_path(batch)]
    for block in store.iter_blocks(files, made.table, [made.key, *made.columns], rows=ROW_GROUP_ROWS):
        for key, values in _values(block, made):
            makers.add(values)
            yield MadeRow(key, batch, dict(zip(made.columns, values, strict=True)))
    only = dict(zip(made.columns, makers.pop(), strict=True)) if len(makers) == 1 else {}
    files = store.dropped_files(made.stage, batch)
    for block in store.iter_blocks(files, "dropped", ["key", "reason", "detail"], rows=ROW_GROUP_ROWS):
        for row in block.to_pylist():
            if ":" not in row["key"] and row["reason"] not in NOT_MADE:
                yield MadeRow(row["key"], batch, maker_in(row["detail"]) or only)


def made_groups(store: Store, stage: str, batch: str) -> Iterator[MadeRow]:
    """`made_rows` in groups of one maker: what counting needs, without a Python object for each row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    made, groups = MADE[stage], Counter[tuple[str | None, ...]]()
    files = [path for path in store.batch_files(made.table, batch) if path != store.reviewed_path(batch)]
    for block in store.iter_blocks(files, made.table, list(made.columns), rows=ROW_GROUP_ROWS):
        for row in block.group_by(list(made.columns)).aggregate([([], "count_all")]).to_pylist():
            groups[tuple(row[column] for column in made.columns)] += row["count_all"]
    for values, count in groups.items():
        yield MadeRow("", batch, dict(zip(made.columns, values, strict=True)), count)
    only = dict(zip(made.columns, next(iter(groups)), strict=True)) if len(groups) == 1 else {}
    rejected = Counter[str]()
    columns = ["key", "reason", "detail"]
    for block in store.iter_blocks(store.dropped_files(made.stage, batch), "dropped", columns, rows=ROW_GROUP_ROWS):
        is_made = pc.invert(
            pc.or_(
                pc.match_substring(block.column("key"), ":"),
                pc.is_in(block.column("reason"), value_set=pa.array(NOT_MADE)),
            )
        )
        details = block.filter(is_made).column("detail").combine_chunks()
        texts = pc.fill_null(
            pc.struct_field(pc.extract_regex(details, r"(?P<maker>\"maker\": \{[^{}]*\})"), "maker"), ""
        )
        for row in texts.value_counts().to_pylist():
            rejected[row["values"]] += row["counts"]
    for text, count in rejected.items():
        yield MadeRow("", batch, maker_in(f"{{{text}}}") or only, count)


def maker_in(detail: str | None) -> dict[str, str]:
    """The maker that a dropped row's detail names; empty where it names none."""
    try:
        maker = json.loads(detail or "{}").get("maker")
    except (ValueError, AttributeError):
        return {}
    return dict(maker) if isinstance(maker, dict) else {}


def _values(block: pa.Table, made: MadeTable) -> Iterable[tuple[str, tuple[str | None, ...]]]:
    columns = block.to_pydict()
    return zip(columns[made.key], zip(*(columns[c] for c in made.columns), strict=True), strict=True)


# --- the maker of now ------------------------------------------------------------------------------------------------


def note_maker(store: Store, stage: str, maker: Maker) -> None:
    """Note the models and prompts that a stage of this run uses, for the version's count of stale rows."""
    content = json.dumps(dict(maker)).encode()
    path = _maker_path(store, stage)
    if not path.exists() or path.read_bytes() != content:
        store.write_bytes(path, content)


def noted_maker(store: Store, stage: str) -> dict[str, str] | None:
    """What a stage of this run noted; None where it loaded no model."""
    path = _maker_path(store, stage)
    return json.loads(path.read_text()) if path.exists() else None


def _maker_path(store: Store, stage: str) -> Path:
    return store.folder(".run", "makers", f"{stage}.json")


# --- counting --------------------------------------------------------------------------------------------------------


def count_stale(rows: Iterable[MadeRow], maker: Maker) -> dict[str, Any]:
    """What is stale, as the card shows it.

    Args:
        rows: of all batches, single or in groups.
        maker: of now.
    Returns:
        rows, stale: counts; oldest: the batch of the oldest stale row, None without any; makers: a name of each other
        maker -> its rows, the most frequent first.
    """
    total, oldest = 0, None
    makers: dict[str, int] = {}
    for row in rows:
        total += row.rows
        if is_stale(row.made, maker):
            name = " / ".join(
                str(row.made[c])[:12] if "sha256" in c else str(row.made[c])
                for c in maker
                if row.made.get(c) is not None
            )
            makers[name or "unknown"] = makers.get(name or "unknown", 0) + row.rows
            if oldest is None or batch_order(row.batch) < batch_order(oldest):
                oldest = row.batch
    ordered = dict(sorted(makers.items(), key=lambda entry: (-entry[1], entry[0])))
    return {"rows": total, "stale": sum(makers.values()), "oldest": oldest, "makers": ordered}
