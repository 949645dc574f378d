"""What people decided wins over the judge: verdicts on triplets of earlier versions, applied before this week's pairs.

A triplet whose verdict on one of its texts is *wrong* leaves the table (reviewed_wrong): the review queue shows a row's
weakest text. Where most people wrote the same other text, that one takes its place instead (reviewed_text): the row
gets a new id, `judge_target` stays the judge's number of the text before, `found_by` becomes null, because neither was
measured for the new one. A negative that most named as fitting better than the target is taken out (reviewed_negative).
A rejected pair that people judged right becomes a triplet (tasks/judge/restored.py); one that cannot, because an image
or its texts are gone, is counted.

Dropped rows go first, to data/dropped/judge/<batch>.parquet, then the tables are rewritten; so a rerun after a crash
finds what is left to do. A second application changes nothing. Without verdicts nothing is read or written.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.judge.licences import keep_negatives
from tasks.judge.rows import Ends, dropped_row
from tasks.names import stable_id
from tasks.reasons import REVIEWED_NEGATIVE, REVIEWED_TEXT, REVIEWED_WRONG
from tasks.reviews.verdicts import Verdict, read_verdicts
from tasks.store import Store
from tasks.store.tables import names_any_id

log = logging.getLogger(__name__)
Row = dict[str, Any]
Texts = Mapping[str, Verdict]  # of one pair of images, by text
LEFT = "left"  # count of rejected pairs that people judged right and that stay out, beside those of the reasons
RESTORED = "restored"  # count of rejected pairs that people judged right and that are triplets now
SENTENCES = {
    RESTORED: "accepted because people judged them right: {} pairs that the judge had rejected, or people withdrawn",
    REVIEWED_WRONG: "withdrawn because people judged them wrong: {} triplets",
    REVIEWED_TEXT: "replaced by what people wrote: {} texts",
    REVIEWED_NEGATIVE: "taken out because people found them to fit better than the target: {} negatives",
    LEFT: "judged right by people, but still left out, because an image, the texts or a score are gone: {} rows",
}


def final_text(text: str, texts: Texts) -> str:
    """What a text is to become; itself where nobody wrote another one, or where each leads back to the one before."""
    seen = [text]
    while (verdict := texts.get(seen[-1])) and verdict.text:
        if verdict.text in seen:
            return text
        seen.append(verdict.text)
    return seen[-1]


def review_row(row: Row, texts: Texts, batch: str) -> tuple[Row | None, list[Row]]:
    """(the triplet as people want it, or None; dropped rows).

    Args:
        row: of table `triplets`.
        texts: verdicts on its pair of images.
        batch: the run's, for the dropped rows.
    """
    of_run, instructions = {"batch": batch}, list(row["instructions"])
    mended: list[dict[str, str]] = []
    for n, text in enumerate(row["instructions"]):
        new = final_text(text, texts)
        others = {other.lower() for place, other in enumerate(instructions) if place != n}
        if new != text and new.lower() not in others:
            instructions[n] = new
            mended.append({"before": text, "after": new, "style": row["styles"][n]})
        verdict = texts.get(instructions[n])
        if verdict and verdict.is_wrong:
            said = {"instruction": verdict.instruction, "right": verdict.right, "wrong": verdict.wrong}
            detail = {"query": verdict.query, "target": verdict.target, **said}
            return None, [dropped_row(of_run, row["triplet_id"], REVIEWED_WRONG, detail)]
    out, dropped = dict(row), list[Row]()
    if mended:
        new_id = stable_id(row["pair_id"], *instructions)
        out |= {"triplet_id": new_id, "instructions": instructions, "found_by": None}
        for texts_of_style in mended:
            key = f"{row['triplet_id']}:{new_id}:{texts_of_style['style']}"
            dropped.append(dropped_row(of_run, key, REVIEWED_TEXT, texts_of_style))
    fits = {
        image_id for text in {*row["instructions"], *instructions} if text in texts for image_id in texts[text].fits
    }
    images = row["negative_image_ids"]
    stays = [n for n, image_id in enumerate(images) if n == 0 or image_id not in fits]  # the query always stays
    for image_id in sorted(set(images) - {images[n] for n in stays}):
        dropped.append(
            dropped_row(of_run, f"{row['triplet_id']}:{image_id}", REVIEWED_NEGATIVE, {"image_id": image_id})
        )
    return (keep_negatives(out, stays) if len(stays) < len(images) else out), dropped


def apply_verdicts(store: Store, batch: str, *, is_takedown: bool = False) -> dict[str, int]:
    """Apply the run's verdicts to the triplets of other batches.

    Args:
        store: of the worktree.
        batch: the run's.
        is_takedown: by hand: rejected pairs that people judged right are left to the next run, and not counted.
    Returns:
        Count by reason, and of the rejected pairs that people judged right and that are still out (LEFT); the same on
        a second call. Empty without verdicts.
    Raises:
        DataError: as of `read_verdicts`.
    """
    verdicts = read_verdicts(store.root)
    if not verdicts:
        return {}
    pairs: dict[Ends, dict[str, Verdict]] = {}
    for verdict in verdicts:
        pairs.setdefault((verdict.query, verdict.target), {})[verdict.instruction] = verdict
    own = set(store.batch_files("triplets", batch))
    changed: dict[Path, list[Row]] = {}
    dropped: list[Row] = []
    for path in (path for path in store.table_files("triplets") if path not in own):
        rows, dropped_here = _review_file(store, path, pairs, batch)
        if dropped_here:
            changed[path] = rows
            dropped += dropped_here
    reasons = add_dropped(store, store.dropped_path("judge", batch), dropped)
    for path, rows in changed.items():
        store.write(path, rows, "triplets")
    counts = {**reasons, LEFT: 0 if is_takedown else _count_left(store, batch, verdicts)}
    for sentence in sentences(counts):
        log.info("judge: %s", sentence)
    return counts


def sentences(counts: Mapping[str, int]) -> list[str]:
    """What the report says of the counts that `apply_verdicts` returned; nothing of those that are zero."""
    return [sentence.format(counts[name]) for name, sentence in SENTENCES.items() if counts.get(name)]


def withdrawn_ends(store: Store) -> set[Ends]:
    """(query, target) of all triplets that were ever withdrawn because people judged them wrong: no pair of a later
    week brings them back. To be read after the triplets, because a triplet goes after its dropped row is there.
    """
    files = [path for path in store.dropped_files("judge") if not re.search(r"-\d+$", path.stem)]
    rows = store.read(files, "dropped", ["reason", "detail"]).to_pylist()
    details = [json.loads(row["detail"]) for row in rows if row["reason"] == REVIEWED_WRONG]
    return {(detail["query"], detail["target"]) for detail in details}


def _review_file(store: Store, path: Path, pairs: Mapping[Ends, Texts], batch: str) -> tuple[list[Row], list[Row]]:
    """(the rows of a file as people want them, dropped rows); nothing is done where no verdict is about its rows."""
    import pyarrow.compute as pc

    queries = store.read(path, "triplets", ["query_image_id"])
    if not pc.any(names_any_id(queries, {query for query, _ in pairs}, ["query_image_id"])).as_py():
        return [], []
    rows: list[Row] = []
    dropped: list[Row] = []
    for row in store.read(path, "triplets").to_pylist():
        texts = pairs.get((row["query_image_id"], row["target_image_id"]))
        after, dropped_here = review_row(row, texts, batch) if texts else (row, [])
        dropped += dropped_here
        rows += [after] if after is not None else []
    return rows, dropped


def add_dropped(store: Store, path: Path, new: Iterable[Row]) -> Counter[str]:
    """Add rows to those that an earlier try has written; returns all by reason."""
    rows = {row["key"]: row for row in (store.read(path, "dropped").to_pylist() if path.exists() else [])}
    before = len(rows)
    rows |= {row["key"]: row for row in new}
    if len(rows) > before:
        store.write(path, [rows[key] for key in sorted(rows)], "dropped")
    return Counter(row["reason"] for row in rows.values())


def _count_left(store: Store, batch: str, verdicts: Sequence[Verdict]) -> int:
    """Rows that the judge (or people, before) rejected in other batches and that people judge right."""
    wanted = {row_id for verdict in verdicts if verdict.is_right for row_id in verdict.row_ids}
    own = set(store.dropped_files("judge", batch))
    files = [path for path in store.dropped_files("judge") if path not in own]
    blocks = store.iter_blocks(files, "dropped", ["key"], rows=50_000) if wanted else ()
    return len({key for block in blocks for key in block.column("key").to_pylist()} & wanted)
