"""Fit the frequencies of an encoder of kind tfidf to the captions of a worktree or a clone.

    python -m tasks fit_words --out FOLDER [--root CLONE]

Do it once, on the first week's captions (or a larger set of the same kind), and keep the folder: with other frequencies
all vectors are other ones, and are embedded again. Name the folder as `embed.encoders.words.model`, with kind tfidf;
`python -m tasks calibrate` proposes the window.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import DataError
from tasks.models.encoders.tfidf import FILE, fit_idf
from tasks.store import Store

BATCH = 2_000  # captions counted at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks fit_words`."""
    parser.add_argument("--root", default=".", type=Path, help="a worktree or a clone (default: the current folder)")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where the frequencies go")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Write FOLDER/idf.npy; {"path", "captions": count}.

    Raises:
        DataError: there is no caption.
    """
    store = Store(args.root)
    captions = list(store.captions().values())
    if not captions:
        raise DataError(f"{args.root}: no caption in data/images or data/captions; run ingest and recaption first")
    buffer = io.BytesIO()
    np.save(buffer, fit_idf(captions[start : start + BATCH] for start in range(0, len(captions), BATCH)))
    store.write_bytes(args.out / FILE, buffer.getvalue())
    print(f"{args.out / FILE}: fitted to {len(captions)} captions")
    return {"path": str(args.out / FILE), "captions": len(captions)}
