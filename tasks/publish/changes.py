"""What changed from one version to another: rows added, withdrawn and re-captioned, drifts, figures, models.

Pure but for the reading of the two snapshots. Images that were withdrawn are named by their ids alone: neither pixels
nor texts of them are read, so that a page about a takedown does not publish them again.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks.config import MINER_ROLES
from tasks.names import seeded_hash
from tasks.publish.snapshots import Snapshot
from tasks.reasons import REVIEWED_TEXT

KEYS = {"images": "image_id", "pairs": "pair_id", "triplets": "triplet_id"}
MODEL_COLUMNS = ("captioner", "captioner_revision", "prompt_sha256", "judge", "judge_revision", "judge_prompt_sha256")
EXAMPLES = 20
UNSTATED = "not stated"  # reason of a row that is gone without a row that says why


@dataclass(frozen=True)
class TableChange:
    """Rows of one table.

    Attributes:
        added, withdrawn: ids, sorted.
        reasons: of the withdrawn rows, reason -> count.
    """

    added: list[str]
    withdrawn: list[str]
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What changed.

    Attributes:
        before, after: names of the versions.
        tables: images, pairs, triplets.
        recaptioned: image id -> (caption before, caption after).
        drift: (what, unit, median before, median after) of the rows that each version's run added; None without rows.
        figures: (name, before, after) of the quality figures in version.json.
        drops: (stage, reason, rows before, rows after), rows that each version's own run left out.
        models: (column, values that went, values that came).
        params: (dotted name, before, after).
        examples: kind -> rows to show, drawn by id alone.
    """

    before: str
    after: str
    tables: dict[str, TableChange]
    recaptioned: dict[str, tuple[str, str]]
    drift: list[tuple[str, str, float | None, float | None]]
    figures: list[tuple[str, float | None, float | None]]
    drops: list[tuple[str, str, int, int]]
    models: list[tuple[str, list[str], list[str]]]
    params: list[tuple[str, Any, Any]]
    examples: dict[str, list[dict[str, Any]]]


def as_values(changes: Changes) -> dict[str, Any]:
    """The changes as plain mappings and lists, for pages and JSON."""
    return asdict(changes)


def compare(a: Snapshot, b: Snapshot, examples: int = EXAMPLES) -> Changes:
    """What changed from `a` to `b`.

    Args:
        examples: rows of each kind to show, a count.
    """
    tables = {table: compare_rows(a, b, table) for table in KEYS}
    return Changes(
        before=a.name,
        after=b.name,
        tables=tables,
        recaptioned=compare_captions(a, b),
        drift=drift(a, b),
        figures=compare_figures(a.record, b.record),
        drops=compare_drops(a.record, b.record),
        models=compare_models(a, b),
        params=compare_params(a.record.get("params") or {}, b.record.get("params") or {}) if a.record else [],
        examples=draw_examples(a, b, tables, examples),
    )


def compare_rows(a: Snapshot, b: Snapshot, table: str) -> TableChange:
    """Ids that only one of two versions has, and why those that are gone went."""
    key = KEYS[table]
    here = set(b.read(table, [key], other=a).column(key).to_pylist())
    there = set(a.read(table, [key], other=b).column(key).to_pylist())
    gone = sorted(there - here)
    return TableChange(sorted(here - there), gone, reasons_of(a, b, gone))


def reasons_of(a: Snapshot, b: Snapshot, ids: Sequence[str]) -> dict[str, int]:
    """Why rows went: by table `withdrawn` of the newer version, else by its dropped rows of that key."""
    if not ids:
        return {}
    known: dict[str, str] = {}
    stages = {path.split("/")[2] for path in b.hashes if path.startswith("data/dropped/")}
    for stage in sorted(stages):
        rows = b.read(f"dropped/{stage}", ["key", "reason"], schema="dropped", other=a).to_pydict()
        for row_id, reason in zip(rows["key"], rows["reason"], strict=True):
            # a triplet with a mended text has a new id; the key names both (tasks/judge/reviewed.py)
            known[row_id.partition(":")[0] if reason == REVIEWED_TEXT else row_id] = reason
    if b.table_files("withdrawn"):
        rows = b.read("withdrawn", ["id", "reason"], other=a).to_pydict()
        known |= dict(zip(rows["id"], rows["reason"], strict=True))
    return dict(sorted(Counter(known.get(one, UNSTATED) for one in ids).items()))


def compare_captions(a: Snapshot, b: Snapshot) -> dict[str, tuple[str, str]]:
    """Images of both versions whose caption is another one."""
    before, after = captions(a, b), captions(b, a)
    return {i: (before[i], after[i]) for i in sorted(before.keys() & after.keys()) if before[i] != after[i]}


def captions(version: Snapshot, other: Snapshot) -> dict[str, str]:
    """image id -> caption, of the files that the other version does not have."""
    out: dict[str, str] = {}
    for table in ("captions", "images"):  # the source's own caption counts first
        rows = version.read(table, ["image_id", "caption"], other=other).to_pydict()
        out |= {i: caption for i, caption in zip(rows["image_id"], rows["caption"], strict=True) if caption}
    return out


def drift(a: Snapshot, b: Snapshot) -> list[tuple[str, str, float | None, float | None]]:
    """Medians of the rows that each version's own run added: similarities, lengths of texts."""
    lines: list[tuple[str, str, float | None, float | None]] = []
    for role in MINER_ROLES:
        column = f"similarity_{role}"
        rows = [s.read("pairs", [column], batch=s.name).column(column).drop_null().to_pylist() for s in (a, b)]
        lines.append((f"similarity of pairs, {role}", "cosine", median(rows[0]), median(rows[1])))
    texts = [s.read("triplets", ["instructions"], batch=s.name).column(0).to_pylist() for s in (a, b)]
    lengths = [median(len(text.split()) for row in rows for text in row or ()) for rows in texts]
    lines.append(("length of an instruction", "words", lengths[0], lengths[1]))
    cosines = [figure(s.record, "select", "median_caption_cosine_new") for s in (a, b)]
    lines.append(("image and its caption", "cosine", cosines[0], cosines[1]))
    return lines


def median(values: Iterable[float]) -> float | None:
    """The median; None of nothing."""
    numbers = list(values)
    return float(statistics.median(numbers)) if numbers else None


def figure(record: Mapping[str, Any], stage: str, name: str) -> float | None:
    """A stage's figure in version.json; None where it was not measured."""
    value = ((record.get("quality") or {}).get(stage) or {}).get(name)
    return float(value) if isinstance(value, int | float) else None


def compare_figures(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, float | None, float | None]]:
    """Quality figures of two version.json side by side, by stage and name."""
    names = {
        (stage, name) for record in (a, b) for stage, values in (record.get("quality") or {}).items() for name in values
    }
    return [(f"{stage}: {name}", figure(a, stage, name), figure(b, stage, name)) for stage, name in sorted(names)]


def compare_drops(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, int, int]]:
    """Rows that the runs of two versions left out, by stage and reason."""
    counts = [record.get("new_drops") or {} for record in (a, b)]
    names = sorted({(stage, reason) for drops in counts for stage, reasons in drops.items() for reason in reasons})
    return [(s, r, counts[0].get(s, {}).get(r, 0), counts[1].get(s, {}).get(r, 0)) for s, r in names]


def compare_models(a: Snapshot, b: Snapshot) -> list[tuple[str, list[str], list[str]]]:
    """Models and prompts that wrote or judged the newest rows: values that went, values that came."""
    lines = []
    for column in MODEL_COLUMNS:
        before = written_by(a, column)
        after = written_by(b, column)
        if after and before != after:
            lines.append((column, sorted(before - after), sorted(after - before)))
    return lines


def written_by(version: Snapshot, column: str) -> set[str]:
    """Values of a column in the rows that a version's own run added."""
    values = version.read("triplets", [column], batch=version.name).column(column).unique().to_pylist()
    return {str(value) for value in values if value}


def compare_params(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Parameters that differ, by dotted name; dates and names of batches left out."""
    before, after = dict(flatten(a)), dict(flatten(b))
    names = sorted((before.keys() | after.keys()) - {"open_run.date", "open_run.batch"})
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def flatten(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted name, value) of every leaf; a list is one."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from flatten(entry, f"{name}.{key}".lstrip("."))
    else:
        yield name, value


def draw_examples(
    a: Snapshot, b: Snapshot, tables: Mapping[str, TableChange], count: int
) -> dict[str, list[dict[str, Any]]]:
    """Rows to show of each kind, drawn by their ids alone."""
    gone = set(tables["images"].withdrawn)
    added = draw(tables["triplets"].added, count)
    withdrawn = draw(tables["triplets"].withdrawn, count)
    columns = ["triplet_id", "query_image_id", "target_image_id", "instructions"]
    lost = a.rows_of("triplets", "triplet_id", withdrawn, columns)
    for row in lost:
        # an image that is gone, and a text about it, are not published again
        if gone & {row["query_image_id"], row["target_image_id"]}:
            row["instructions"] = []
            row |= {end: None if row[end] in gone else row[end] for end in ("query_image_id", "target_image_id")}
    caption_columns = ["image_id", "caption", "license_code"]
    return {
        "added triplets": b.rows_of("triplets", "triplet_id", added, columns),
        "withdrawn triplets": lost,
        "added images": b.rows_of("images", "image_id", draw(tables["images"].added, count), caption_columns),
    }


def draw(ids: Sequence[str], count: int) -> list[str]:
    """At most `count` ids in an order that depends on the ids alone."""
    return sorted(ids, key=lambda one: seeded_hash("diff", one))[:count]
