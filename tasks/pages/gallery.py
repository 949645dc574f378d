"""Gallery: one self-contained HTML page per version, for people to look at the data.

    python -m tasks gallery --root CLONE --out gallery.html [--evaluation evaluation.json]

Shows triplets drawn at random, what was dropped and why, the similarities under each encoder, and the retrieval scores
where there are any. Reads the version's tables, images and version.json, and evaluation.json when there is one; writes
the page. The page runs no script and loads nothing, every text is escaped, the images are small JPEGs inside it. It is
at most 6 MB and opens from file://. Its words and marks are in templates/gallery.html.j2, its look in style.css.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import MINER_ROLES, Params, load_params
from tasks.config.public import public_name
from tasks.pages.charts import Band, Frame, histogram
from tasks.pages.images import draw_ids, thumbnail_uri
from tasks.pages.render import html
from tasks.reasons import REASONS, why
from tasks.store import Store

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 6_000_000
SIZES = ((192, 82), (144, 76), (96, 70), (64, 60))  # image side px and JPEG quality, tried until the page fits
QUERIES, CORPUS = 400, 20_000  # rows of the similarity histogram, at most
NEGATIVES = 10  # shown of a triplet, at most
METRICS = {"map_at_5": "mAP@5", "recall_at_1": "Recall@1", "recall_at_10": "Recall@10"}
SAMPLE_CHECKPOINTS = "tasks/sample/checkpoints/"


def nearest_similarities(vectors: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
    """Cosine of each of a sample of rows to its nearest others, whether inside the window or not.

    Args:
        vectors: (n, d), rows of unit length.
        neighbours: k.
        seed: of the sample (at most 400 queries among at most 20,000 rows).
    Returns:
        (q * k,) float32, unsorted; empty for fewer than two rows.
    """
    import numpy as np

    draw = random.Random(seed)
    n = len(vectors)
    corpus = np.asarray(vectors[sorted(draw.sample(range(n), min(n, CORPUS)))], dtype=np.float32)
    if len(corpus) < 2:
        return np.zeros(0, np.float32)
    queries = np.asarray(sorted(draw.sample(range(len(corpus)), min(len(corpus), QUERIES))))
    product = corpus[queries] @ corpus.T  # (q, n)
    product[np.arange(len(queries)), queries] = -2.0
    k = min(neighbours, len(corpus) - 1)
    return np.partition(product, -k, axis=1)[:, -k:].ravel()


# --- the context: plain values, one function for each part of the page -----------------------------------------------


def triplet_card(row: Mapping[str, Any], pair: Mapping[str, Any], negative_threshold: float) -> dict[str, Any]:
    """One triplet: its images' ids, its texts and negatives with the judge's scores, and which encoders found it."""
    texts = zip(row["instructions"], row["styles"], row["judge_target"], strict=False)
    negatives = list(zip(row["negative_image_ids"], row["judge_negative"], strict=False))[:NEGATIVES]
    similarities = {encoder: pair.get(f"similarity_{encoder}") for encoder in MINER_ROLES}
    return {
        "triplet_id": row["triplet_id"],
        "query": row["query_image_id"],
        "target": row["target_image_id"],
        "texts": [{"text": text, "style": style, "score": score} for text, style, score in texts],
        "negatives": [
            {"image_id": image_id, "score": score, "is_high": score >= negative_threshold}
            for image_id, score in negatives
        ],
        "encoders": [
            {"encoder": encoder, "similarity": similarity, "is_finder": encoder in row["mined_by"]}
            for encoder, similarity in similarities.items()
            if similarity is not None
        ],
    }


def written_by(rows: Sequence[Mapping[str, Any]]) -> str:
    """The models that wrote and judged the rows, in a sentence; a warning where they are the sample world's own."""
    writers, judges = sorted({str(r["captioner"]) for r in rows}), sorted({str(r["judge"]) for r in rows})
    if not rows:
        return ""
    warning = (
        " These are tiny checkpoints, trained on drawn scenes: on other images their words mean nothing."
        if any(SAMPLE_CHECKPOINTS in name for name in (*writers, *judges))
        else ""
    )
    return f"Written with {', '.join(writers)}, judged by {', '.join(judges)}.{warning}"


def drop_panels(drops: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """What every stage left out, by reason, the most frequent first; stages in the order of the flow."""
    flow = list(REASONS)
    stages = sorted(drops.items(), key=lambda e: (flow.index(e[0]) if e[0] in flow else len(flow), e[0]))
    return [
        {
            "name": stage,
            "total": sum(reasons.values()),
            "reasons": [
                {"name": reason, "why": why(stage, reason), "count": n, "percent": 100 * n / max(reasons.values())}
                for reason, n in sorted(reasons.items(), key=lambda e: -e[1])
            ],
        }
        for stage, reasons in stages
    ]


def encoder_panels(store: Store, params: Params) -> list[dict[str, Any]]:
    """Each encoder's model, window and chart of similarities."""
    panels = []
    for role, window in params.mine.windows.items():
        _, vectors, revision = store.read_embeddings(role)
        spec = params.embed.encoders.get(role)
        values = nearest_similarities(vectors, params.mine.neighbours, params.open_run.seed).tolist()
        frame = Frame(
            f"Similarities under the encoder '{role}'",
            f"Histogram of {len(values):,} cosine similarities of images to their {params.mine.neighbours} nearest "
            f"neighbours; the window from {window.low:g} to {window.high:g} is shaded.",
            x_label="cosine similarity",
            y_label="neighbours",
            width=460,
            height=220,
        )
        colour = f"var(--{role})"
        panels.append(
            {
                "role": role,
                "model": "/".join(public_name(spec.model).split("/")[-2:]) if spec else "no model configured",
                "revision": revision,
                "window": window,
                "chart": histogram(frame, values, colour=colour, band=Band(window.low, window.high, colour))
                if values
                else "",
            }
        )
    return panels


def tiles(version: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The version's counts."""
    rows, new = version["rows"], version["new_rows"]
    dropped = sum(n for reasons in version["drops"].values() for n in reasons.values())
    counted = [
        {"count": rows[table], "label": f"{table}, {new[table]:,} new"} for table in ("triplets", "images", "pairs")
    ]
    return [*counted, {"count": dropped, "label": "rows left out, each with its reason"}]


def retrieval_section(metrics: Mapping[str, Any]) -> str:
    """The scores by model and kind of query; an empty section without scores, which `with_retrieval` fills later.

    Args:
        metrics: model -> kind of query -> metric -> value, of evaluation.json.
    """
    rows = [
        (model, query, values)
        for model, kinds in metrics.items()
        if isinstance(kinds, Mapping)
        for query, values in kinds.items()
        if isinstance(values, Mapping)
    ]
    numbers = [{m: v[m] if isinstance(v.get(m), int | float) else None for m in METRICS} for _, _, v in rows]
    measured = {m: [value for n in numbers if (value := n[m]) is not None] for m in METRICS}
    best = {m: max(values, default=None) for m, values in measured.items()}
    table = [
        {
            "model": model,
            "query": query,
            "cells": [{"value": n[m], "is_best": n[m] is not None and n[m] == best[m]} for m in METRICS],
        }
        for (model, query, _), n in zip(rows, numbers, strict=True)
    ]
    labels = [{"name": name, "label": label} for name, label in METRICS.items()]
    return html("retrieval.html.j2", models=table, metrics=labels).strip()


def with_retrieval(page: str, evaluation: Mapping[str, Any]) -> str:
    """A page that was made before its version's model was evaluated, with the scores filled in."""
    return page.replace(retrieval_section({}), retrieval_section(evaluation.get("metrics") or {}), 1)


# --- the page --------------------------------------------------------------------------------------------------------


def rows_by_id(store: Store, table: str, key: str, ids: Iterable[str], columns: list[str] | None = None) -> list[Any]:
    """The rows of a table whose key is one of the ids."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = store.read_table(table, columns)
    return list(rows.filter(pc.is_in(rows.column(key), value_set=pa.array(sorted(ids), pa.string()))).to_pylist())


def build(store: Store, params: Params, version: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> str:
    """The page of a version, at most MAX_BYTES: images shrink until it fits, then fewer triplets are shown."""
    all_ids = store.read_table("triplets", ["triplet_id"]).column("triplet_id").to_pylist()
    drawn = draw_ids(all_ids, params.version.gallery_triplets, version["version"])
    triplets = {t["triplet_id"]: t for t in rows_by_id(store, "triplets", "triplet_id", drawn)}
    columns = ["pair_id", *(f"similarity_{encoder}" for encoder in MINER_ROLES)]
    pair_ids = {t["pair_id"] for t in triplets.values()}
    pairs = {p["pair_id"]: p for p in rows_by_id(store, "pairs", "pair_id", pair_ids, columns)}
    rows = [triplets[i] for i in drawn]
    cards = [triplet_card(r, pairs.get(r["pair_id"], {}), params.judge.negative_threshold) for r in rows]
    context = {
        **{name: version[name] for name in ("dataset", "version", "date", "fingerprint", "git_commit")},
        "parent": version.get("parent"),
        "tiles": tiles(version),
        "models": written_by(rows),
        "drops": drop_panels(version["drops"]),
        "encoders": encoder_panels(store, params),
        "retrieval": retrieval_section((evaluation or {}).get("metrics") or {}),
    }
    image_ids = {i for c in cards for i in (c["query"], c["target"], *(n["image_id"] for n in c["negatives"]))}
    page, images = "", {}
    for side_px, quality in SIZES:
        images = {i: thumbnail_uri(store, i, side_px, quality) for i in sorted(image_ids)}
        page = html("gallery.html.j2", **context, images=images, cards=cards)
        if len(page.encode()) <= MAX_BYTES:
            return page
    while len(page.encode()) > MAX_BYTES and cards:
        cards = cards[: len(cards) * 3 // 4]
        page = html("gallery.html.j2", **context, images=images, cards=cards)
    return page


def write_gallery(
    store: Store, params: Params, version: Mapping[str, Any], out: Path, evaluation: Mapping[str, Any] | None = None
) -> None:
    """Write the page of a version aside, then rename."""
    store.write_bytes(out, build(store, params, version, evaluation).encode())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks gallery`."""
    parser.add_argument("--root", default=".", type=Path, help="a clone after `dvc pull`, or a run's worktree")
    parser.add_argument("--out", default="gallery.html", type=Path, help="the page (default: gallery.html)")
    parser.add_argument("--evaluation", type=Path, help="evaluation.json; default: the clone's reports/evaluation.json")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Write the page; {"path", "size_bytes"}."""
    path = args.evaluation or args.root / "reports" / "evaluation.json"
    evaluation = json.loads(path.read_text()) if path.exists() else None
    version = json.loads((args.root / "version.json").read_text())
    write_gallery(Store(args.root), load_params(args.root / "params.yaml"), version, args.out, evaluation)
    size_bytes = args.out.stat().st_size
    print(f"{args.out}: {size_bytes / 1e6:.1f} MB")
    return {"path": str(args.out), "size_bytes": size_bytes}
