"""Fit the estimate of how many things differ between two images (`select.differences`) to labelled pairs.

    python -m tasks calibrate --source FOLDER --differences pairs.csv [--judged 800]
        [--profile NAME] [--others-differ] [--most 3] [--out differences.json]

pairs.csv has the columns `query`, `target` (files of the folder), `differences` (a count; `more` where there are more
than the describer can say). The folder goes through ingest, recaption, embed and mine in a temporary folder; those of
the mined pairs that pairs.csv names are fitted to. A pair and its other direction have the same label. With
`--others-differ` a mined pair that pairs.csv does not name differs in more than can be said. With `--judged N` the
profile's describer, writer and judge are asked about N of the pairs, as many of each number of differences: so the
estimate knows which share of each the judge accepts.

Two hundred labelled pairs are few, a thousand are plenty: the model has 28 numbers for each count, held back by
PENALTY. The command prints how well it does on a fifth of the query images that it was not fitted to.
"""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.caption import stage as caption
from tasks.config import ENCODER_ROLES, Params
from tasks.errors import DataError
from tasks.judge import stage as judge
from tasks.mine import stage as mine
from tasks.names import batch_name
from tasks.select.candidates import Candidates, index_in_group, merge_candidates
from tasks.select.differences import DifferenceModel, design
from tasks.select.estimate import mined_windows, stored_revisions
from tasks.select.read_neighbours import open_vectors, read_candidates
from tasks.select.spill import WorkingMemory
from tasks.select.words import read_captions
from tasks.store import Store
from tasks.store.atomic import write_bytes

PENALTY = 1.0  # of the squared weights, in pairs
COUNT = re.compile(r"[1-9][0-9]{0,8}|more")
HELD_OUT = 5  # every fifth query image is not fitted to
MEMORY = WorkingMemory(1 << 30)


def read_labels(path: Path, most: int) -> dict[tuple[str, str], int | None]:
    """(query, target) -> differences of a pairs.csv, None for more than can be said.

    Args:
        path: of the file.
        most: differences that the describer can say; a higher count is "more".
    Raises:
        DataError: it cannot be read, lacks a column, or has another value.
    """
    labels: dict[tuple[str, str], int | None] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in (reader := csv.DictReader(file, restval="")):
                stated, where = row["differences"].strip(), f"line {reader.line_num}"
                if not row["query"] or not row["target"]:
                    raise ValueError(f"{where}: a pair has a query and a target")
                if not COUNT.fullmatch(stated):
                    raise ValueError(f"{where}: differences {stated!r}")
                labels[row["query"], row["target"]] = None if stated == "more" or int(stated) > most else int(stated)
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: {error}; expected the columns query, target, differences (1, 2, ... or more)"
        ) from error
    return labels


def mine_folder(params: Params, store: Store) -> Candidates:
    """The candidates among the images of an embedded folder."""
    for role in params.embed.encoders:
        mine.run(params, store, role)
    encoders = [e for e in ENCODER_ROLES if e in params.embed.encoders]
    with tempfile.TemporaryDirectory(prefix="candidates-") as folder:
        mined = read_candidates(store, encoders, batch_name(params), set(), MEMORY, Path(folder))
        return merge_candidates(mined.image_ids, {e: mined.read(e, "new", 0) for e in encoders})


def inputs_of(params: Params, store: Store, c: Candidates) -> np.ndarray:
    """(m, 6) float64 of differences.INPUTS."""
    vectors = open_vectors(store, [e for e in ENCODER_ROLES if e in params.embed.encoders], c.image_ids)
    with tempfile.TemporaryDirectory(prefix="captions-") as folder:
        captions = read_captions(store, c.image_ids, Path(folder) / "captions", MEMORY)
        cosines = vectors.gather(c.queries, c.targets).similarities(c.queries, c.targets)[:, : len(ENCODER_ROLES)]
        return np.column_stack([cosines, captions.compare(c.queries, c.targets)])


def classes_of(
    store: Store, c: Candidates, labels: Mapping[tuple[str, str], int | None], most: int, *, others_differ: bool
) -> np.ndarray:
    """(m,) int64, differences less one of each candidate, `most` for more, -1 without a label."""
    images = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
    names = {i: u.partition(":")[2] for i, u in zip(images["image_id"], images["source_uri"], strict=True)}
    ids = c.image_ids.to_pylist()
    result = np.full(len(c), most if others_differ else -1, np.int64)
    for n, (query, target) in enumerate(zip(c.queries.tolist(), c.targets.tolist(), strict=True)):
        ends = names[ids[query]], names[ids[target]]
        for pair in (ends, ends[::-1]):
            if pair in labels:
                stated = labels[pair]
                result[n] = most if stated is None else stated - 1
                break
    return result


def ask_models(params: Params, store: Store, c: Candidates, classes: np.ndarray, count: int) -> np.ndarray:
    """(m,) float64: 1 and 0 for pairs that the judge accepted or not, NaN for those that were not tried.

    Args:
        params: whose models describe, write and judge.
        store: of the folder; gets their tables.
        c, classes: the pairs.
        count: pairs tried, as many of each class, drawn by the hash of their ids.
    """
    result, batch, ids = np.full(len(c), np.nan), batch_name(params), c.image_ids.to_pylist()
    order = np.argsort(c.pair_ids)
    number = np.empty(len(c), np.int64)
    by_class = order[np.argsort(classes[order], kind="stable")]
    number[by_class] = index_in_group(classes[by_class])
    chosen = np.flatnonzero((classes >= 0) & (number < -(-count // (int(classes.max(initial=0)) + 1))))
    rows = []
    for n in chosen.tolist():
        query, target = ids[int(c.queries[n])], ids[int(c.targets[n])]
        ends = {"query_image_id": query, "target_image_id": target}
        negatives = {"negative_image_ids": [query], "negative_similarity": [0.0]}
        rows.append({"pair_id": c.pair_ids[n].decode(), "batch": batch, "rank": 0, "mined_by": [], **ends, **negatives})
    store.write(store.table_path("pairs", batch), rows, "pairs")
    caption.run(params, store)
    judge.run(params, store)
    accepted = set(store.read_table("triplets", ["pair_id"], batch).column("pair_id").to_pylist())
    result[chosen] = [row["pair_id"] in accepted for row in rows]
    return result


@dataclass(frozen=True)
class Fitted:
    """What an estimate belongs to: encoder -> revision of its model, and encoder -> (low, high) of its window."""

    revisions: Mapping[str, str]
    windows: Mapping[str, tuple[float, float]]


def fit(inputs: np.ndarray, classes: np.ndarray, accepted: np.ndarray, most: int, fitted: Fitted) -> DifferenceModel:
    """Fit a model to labelled pairs, by L-BFGS from zero: the same pairs give the same numbers.

    Args:
        inputs: (m, 6) of differences.INPUTS.
        classes: (m,) int64, 0 to `most`.
        accepted: (m,) 1, 0 or NaN. A class without any known is accepted always, the last one never.
        most: differences that the describer can say.
        fitted: whose vectors and windows the pairs are of.
    Raises:
        DataError: a number of differences without a pair.
    """
    from scipy.optimize import minimize

    shares = np.bincount(classes, minlength=most + 1) / max(len(classes), 1)
    if not (shares > 0).all():
        missing = [n + 1 if n < most else "more" for n in np.flatnonzero(shares == 0).tolist()]
        raise DataError(f"no labelled pair that was mined has {missing} differences; label some of each count")
    mean, scale = np.nan_to_num(np.nanmean(inputs, axis=0)), np.nan_to_num(np.nanstd(inputs, axis=0), nan=1.0)
    scale = np.where(scale > 0, scale, 1.0)
    terms, truth = design(inputs, mean, scale), np.eye(most + 1)[classes]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(most + 1, -1)
        logits = terms @ weights.T
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        chances /= chances.sum(axis=1, keepdims=True)
        value = -float((truth * np.log(chances + 1e-300)).sum()) + PENALTY / 2 * float((weights[:, 1:] ** 2).sum())
        gradient = (chances - truth).T @ terms
        gradient[:, 1:] += PENALTY * weights[:, 1:]
        return value, gradient.ravel()

    start = np.zeros((most + 1) * terms.shape[1])
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x.reshape(most + 1, -1)
    known = ~np.isnan(accepted)
    of_class = [accepted[known & (classes == n)] for n in range(most + 1)]
    chances = [float(rows.mean()) if len(rows) else float(n < most) for n, rows in enumerate(of_class)]
    return DifferenceModel(fitted.revisions, fitted.windows, mean, scale, weights, shares, np.array(chances))


def held_out_figures(model: DifferenceModel, inputs: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """How well a model does on pairs: log loss, and for pairs from a chance of acceptance on their count and the shares
    of their true differences.
    """
    chances = model.chances(inputs)
    own = chances[np.arange(len(classes)), classes]
    bands, acceptance = model.judge(inputs, np.ones(model.most))
    figures: dict[str, Any] = {
        "pairs": len(classes),
        "log_loss": round(float(-np.log(np.maximum(own, 1e-9)).mean()), 4),
    }
    for least in (0.3, 0.5, 0.7):
        found = acceptance >= least * float(model.accepted.max())
        shares = np.bincount(classes[found], minlength=model.most + 1) / max(1, int(found.sum()))
        figures[f"from_{least}"] = {"pairs": int(found.sum()), "shares": np.round(shares, 3).tolist()}
    likely = acceptance >= 0.5 * float(model.accepted.max())
    figures["number_right"] = round(float((bands == classes)[likely].mean()), 3) if likely.any() else None
    return figures


@dataclass(frozen=True)
class FitSettings:
    """How an estimate is fitted.

    Attributes:
        most: differences that the describer can say.
        others_differ: whether a pair without a label differs in more.
        judged: pairs that the models are asked about, a count.
    """

    most: int = 3
    others_differ: bool = False
    judged: int = 0


def fit_to_folder(params: Params, store: Store, path: Path, settings: FitSettings) -> dict[str, Any]:
    """The estimate's file as JSON values, from an embedded folder and its pairs.csv; prints how well it does."""
    most, c = settings.most, mine_folder(params, store)
    inputs, labels = inputs_of(params, store, c), read_labels(path, most)
    classes = classes_of(store, c, labels, most, others_differ=settings.others_differ)
    is_labelled, is_held_out = classes >= 0, c.queries % HELD_OUT == 0
    accepted = np.full(len(c), np.nan)
    if settings.judged:
        accepted = ask_models(params, store, c, classes, settings.judged)
    fitted = Fitted(stored_revisions(params, store), mined_windows(params))
    train, test = is_labelled & ~is_held_out, is_labelled & is_held_out
    model = fit(inputs[train], classes[train], accepted[train], most, fitted)
    figures = held_out_figures(model, inputs[test], classes[test]) if test.any() else {}
    print(f"differences: fitted to {int(train.sum())} of {len(c)} mined pairs; on others: {json.dumps(figures)}")
    print(f"differences: accepted by the judge {model.accepted.tolist()}, {settings.judged} pairs tried")
    model = fit(inputs[is_labelled], classes[is_labelled], accepted[is_labelled], most, fitted)
    return {**model.to_json(), "pairs": int(is_labelled.sum()), "judged": settings.judged, "held_out": figures}


def write_estimate(path: Path, content: Mapping[str, Any]) -> None:
    """Write the estimate's file."""
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
    print(f"written: {path}; name it in select.differences")
