"""Label draft: questions from a run with their images, for a person to answer; the judge is measured on the answers.

    python -m tasks label_draft --root RUN --out labelled/mine [--count 120]

Reads captioned, pairs and images of a clone or of a run's worktree, before or after judging. Writes OUT/labels.csv
(column `fits` empty), OUT/images/ and OUT/sheet.html. Questions are drawn by the pairs' ids alone, whatever a judge
says about them: of every five, two show the target, two a mined negative (the hard ones) and one the query image
itself. docs/labelled/README.md says how to fill in the answers.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError, DataError
from tasks.judge.labelled import COLUMNS
from tasks.pages.images import draw_ids, thumbnail_uri
from tasks.pages.render import html
from tasks.store import Store

SIDE_PX, QUALITY = 240, 82
CANDIDATES = ("target", "negative", "target", "negative", "query")


def questions(
    captioned: Sequence[Mapping[str, Any]], pairs: Mapping[str, Mapping[str, Any]], count: int
) -> list[dict[str, Any]]:
    """Questions drawn by the pairs' ids, at most two about one pair.

    Args:
        captioned: rows with pair_id and instructions.
        pairs: pair_id -> its row; a captioned row without one is skipped.
        count: questions.
    Returns:
        At most `count` rows with query and candidate (image ids) and instruction.
    """
    instructions = {row["pair_id"]: row["instructions"] for row in captioned if row["pair_id"] in pairs}
    drawn: list[dict[str, Any]] = []
    for n, pair_id in enumerate(2 * draw_ids(list(instructions), count, "labels")):
        if len(drawn) == count:
            break
        pair, texts, kind = pairs[pair_id], instructions[pair_id], CANDIDATES[len(drawn) % len(CANDIDATES)]
        mined = pair["negative_image_ids"][1:]
        if kind == "negative" and not mined:
            kind = "query"
        candidate = mined[n % len(mined)] if kind == "negative" else pair[f"{kind}_image_id"]
        drawn.append({"query": pair["query_image_id"], "candidate": candidate, "instruction": texts[n % len(texts)]})
    return drawn


def sheet(rows: Sequence[Mapping[str, Any]], store: Store) -> str:
    """A page that shows every question, numbered as its row in the file."""
    context = [
        {
            "query": thumbnail_uri(store, row["query"], SIDE_PX, QUALITY),
            "candidate": thumbnail_uri(store, row["candidate"], SIDE_PX, QUALITY),
            "instruction": row["instruction"],
        }
        for row in rows
    ]
    return html("label_sheet.html.j2", questions=context)


def write(store: Store, out: Path, count: int) -> int:
    """Write the draft into folder `out`; the number of questions.

    Raises:
        ConfigError: there is a labels.csv already; a person's answers are never overwritten.
        DataError: nothing was captioned.
    """
    if (out / "labels.csv").exists():
        raise ConfigError(f"{out / 'labels.csv'}: exists; name another folder with --out")
    columns = ["pair_id", "query_image_id", "target_image_id", "negative_image_ids"]
    pairs = {pair["pair_id"]: pair for pair in store.read_table("pairs", columns).to_pylist()}
    rows = questions(store.read_table("captioned", ["pair_id", "instructions"]).to_pylist(), pairs, count)
    if not rows:
        raise DataError(f"{store.root}: no captioned pair; run the stage caption first")
    image_ids = dict.fromkeys(row[c] for row in rows for c in ("query", "candidate"))
    names = {image_id: f"images/{n:04d}.jpg" for n, image_id in enumerate(image_ids, 1)}
    for image_id, name in names.items():
        file = io.BytesIO()
        store.read_image(image_id).save(file, "JPEG", quality=95)
        store.write_bytes(out / name, file.getvalue())
    store.write_bytes(out / "sheet.html", sheet(rows, store).encode())
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows((names[row["query"]], names[row["candidate"]], row["instruction"], "") for row in rows)
    store.write_bytes(out / "labels.csv", text.getvalue().encode())
    return len(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks label_draft`."""
    parser.add_argument("--root", default=".", type=Path, help="a clone after `dvc pull`, or a run's worktree")
    parser.add_argument("--out", required=True, type=Path, help="folder for labels.csv, images/ and sheet.html")
    parser.add_argument("--count", default=120, type=int, help="questions, a count (default 120)")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Write the draft; {"path", "questions": count}."""
    count = write(Store(args.root), args.out.resolve(), args.count)
    print(f"{args.out}: {count} questions; fill the column fits of labels.csv, then name it in judge.labelled")
    return {"path": str(args.out), "questions": count}
