"""What people answer about triplets: kept as lines of JSON beside the deployment's clone, measured, and given to the
judge's check as labels.

    python -m tasks reviews --version 2026.11.28 --labels labelled/reviews

writes labels.csv with its images (docs/labelled/README.md) from the rows that were answered right or wrong and on which
all reviewers agree, and prints how far two reviewers agree. The queue itself is a page in Airflow's UI
(plugins/reports_plugin.py): rows nearest the judge's threshold first. The file of answers is tasks/reviews/answers.py,
what the next version makes of them tasks/reviews/verdicts.py. MEGAPAIRS_DATASET names the clone.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.browse.published import PublishedVersion, versions
from tasks.errors import ConfigError, DataError
from tasks.reviews.answers import Review, Reviews
from tasks.store.atomic import write_bytes

if TYPE_CHECKING:
    from tasks.browse.triplets import TripletIndex


def now() -> str:
    """The time as a review states it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def agreement(reviews: Iterable[Review]) -> dict[str, Any]:
    """How far two people agree on rows that both answered right or wrong.

    Returns:
        {"rows", "agreed", "kappa"}: rows with two answers, those with equal ones, Cohen's kappa (None below two rows,
        or where all answers are one).
    """
    answers: dict[tuple[str, str], list[str]] = {}
    for review in reviews:
        if review.answer != "unsure":
            answers.setdefault((review.row_id, review.instruction), []).append(review.answer)
    pairs = [row[:2] for row in answers.values() if len(row) > 1]
    agreed = sum(first == second for first, second in pairs)
    kappa = None
    if len(pairs) > 1:
        rights = [sum(pair[n] == "right" for pair in pairs) / len(pairs) for n in (0, 1)]
        by_chance = rights[0] * rights[1] + (1 - rights[0]) * (1 - rights[1])
        if by_chance < 1:
            kappa = round((agreed / len(pairs) - by_chance) / (1 - by_chance), 4)
    return {"rows": len(pairs), "agreed": agreed, "kappa": kappa}


def queue(index: TripletIndex, threshold: float, answered: Sequence[str], reason: str = "") -> list[int]:
    """Numbers of the rows still to be answered, those nearest the threshold first, then in the order of the rows.

    Args:
        index: of the version.
        threshold: of the judge, 0..1.
        answered: ids of rows that this person has answered.
        reason: accepted, or a reason of the judge; empty for all.
    """
    import numpy as np

    numbers = np.arange(len(index)) if not reason else np.flatnonzero(index.status.rows(reason))
    done = set(answered)
    ordered = numbers[np.argsort(np.abs(index.score[numbers] - threshold), kind="stable")]
    ids = index.row_ids
    return [int(n) for n in ordered if ids[n] not in done]


def labels(reviews: Iterable[Review]) -> list[tuple[str, str, str, str]]:
    """(query, candidate, instruction, yes or no) of what all reviewers agree on; unsure ones count as none."""
    answers: dict[tuple[str, str, str], set[str]] = {}
    for review in reviews:
        if review.answer != "unsure":
            answers.setdefault((review.query, review.target, review.instruction), set()).add(review.answer)
        if review.better and review.better != review.target:
            answers.setdefault((review.query, review.better, review.instruction), set()).add("right")
    fits = {"right": "yes", "wrong": "no"}
    return [(*key, fits[next(iter(said))]) for key, said in answers.items() if len(said) == 1]


def write_labels(version: PublishedVersion, reviews: Sequence[Review], folder: Path) -> int:
    """Write labels.csv and its images; returns the count of questions.

    Left out are questions about an image that the version does not have: it was withdrawn since, or a person mistyped
    the id of the better one.
    """
    from tasks.browse.explorer import explorer_of

    rows, explorer = labels(reviews), explorer_of(version)
    absent = set()
    for image_id in sorted({image for query, candidate, *_ in rows for image in (query, candidate)}):
        try:
            content = explorer.image(image_id)
        except DataError:
            absent.add(image_id)
            continue
        write_bytes(folder / f"{image_id}.jpg", content)
    rows = [row for row in rows if absent.isdisjoint(row[:2])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("query", "candidate", "instruction", "fits"))
    writer.writerows((f"{query}.jpg", f"{candidate}.jpg", said, fits) for query, candidate, said, fits in rows)
    write_bytes(folder / "labels.csv", text.getvalue().encode())
    return len(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks reviews`."""
    parser.add_argument("--version", help="whose images are written (default: the newest)")
    parser.add_argument("--labels", type=Path, help="folder for labels.csv and its images")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Count the reviews, and write the labels where asked.

    Raises:
        ConfigError: no deployment, or no such version.
    """
    clone = Path(os.environ.get("MEGAPAIRS_DATASET") or ".")
    reviews = Reviews(clone).read()
    found: dict[str, Any] = {"reviews": len(reviews), **agreement(reviews)}
    if args.labels:
        named = [v for v in versions(clone) if args.version in (None, v.name)]
        if not named:
            raise ConfigError(f"--version {args.version}: no such version; expected one of `git tag` in {clone}")
        found["labels"] = write_labels(named[0], reviews, args.labels)
    print(
        f"{found['reviews']} answers; two people agree on {found['agreed']} of {found['rows']}, kappa {found['kappa']}"
    )
    return found
