"""Gallery: one self-contained HTML page per version, for people: triplets, what was dropped and why, similarities,
scores.

    python -m tasks gallery --root CLONE --out gallery.html [--evaluation evaluation.json]

Reads the version's tables, images and version.json, and evaluation.json when there is one; writes the page: no
script, nothing loaded, every text escaped, images inside as small JPEGs, at most 6 MB. Opens from file://.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import Params, load_params
from tasks.names import seeded_hash
from tasks.pages.page import STYLE, escaped, sample, thumbnail
from tasks.reasons import REASONS, why
from tasks.store import Store

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 6_000_000
SIZES = ((192, 82), (144, 76), (96, 70), (64, 60))  # image side px and JPEG quality, tried until the page fits
QUERIES, CORPUS = 400, 20_000  # rows of the similarity histogram, at most
BINS = 60
COLOURS = {"semantic": "var(--c1)", "pattern": "var(--c2)", "caption": "var(--c3)"}


# --- what to show ----------------------------------------------------------------------------------------------------


def nearest_similarities(vectors: np.ndarray, neighbours: int, seed: int) -> np.ndarray:
    """Cosine of each of a sample of rows to its nearest others, window or not.

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
    chosen = np.asarray(vectors[sorted(draw.sample(range(n), min(n, CORPUS)))], dtype=np.float32)
    if len(chosen) < 2:
        return np.zeros(0, np.float32)
    queries = np.asarray(sorted(draw.sample(range(len(chosen)), min(len(chosen), QUERIES))))
    product = chosen[queries] @ chosen.T  # (q, n)
    product[np.arange(len(queries)), queries] = -2.0
    k = min(neighbours, len(chosen) - 1)
    return np.partition(product, -k, axis=1)[:, -k:].ravel()


# --- how to show it --------------------------------------------------------------------------------------------------


def histogram(values: Sequence[float], low: float, high: float, colour: str, label: str) -> str:
    """An inline SVG histogram over the values' range, the window [low, high) drawn in."""
    width, height, foot = 520, 190, 26
    values = list(values)
    if not values:
        return "<p>No vectors.</p>"
    left = min(min(values), low) - 0.02
    right = min(1.0, max(max(values), high) + 0.01)
    counts = [0] * BINS
    for v in values:
        counts[min(BINS - 1, max(0, int((v - left) / (right - left) * BINS)))] += 1
    top, step = max(counts), width / BINS

    def x(value: float) -> float:
        return (min(max(value, left), right) - left) / (right - left) * width

    bars = []
    for n, count in enumerate(counts):
        middle = left + (n + 0.5) / BINS * (right - left)
        inside = low <= middle < high
        tall = count / top * (height - foot - 14)
        if count:
            bars.append(
                f'<rect x="{n * step + 0.5:.1f}" y="{height - foot - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}" rx="1.5" fill="{colour}" opacity="{1 if inside else 0.28}"/>'
            )
    a, b = x(low), x(high)
    ticks = "".join(
        f'<text x="{min(max(x(t), 14), width - 14):.1f}" y="{height - 8}" text-anchor="middle" font-size="12" fill="var(--soft)">{t:.2f}</text>'
        for t in (left + f * (right - left) for f in (0, 0.25, 0.5, 0.75, 1))
    )
    edges = "".join(
        f'<line x1="{e:.1f}" x2="{e:.1f}" y1="0" y2="{height - foot}" stroke="{colour}" stroke-dasharray="4 4"/>'
        for e in (a, b)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(label)}"><rect x="{a:.1f}" y="0" width="{max(b - a, 1):.1f}" height="{height - foot}" fill="{colour}" opacity=".09"/>'
        f'{"".join(bars)}{edges}<line x1="0" x2="{width}" y1="{height - foot}" y2="{height - foot}" stroke="var(--line)"/>{ticks}</svg>'
    )


def card(row: Mapping[str, Any], pair: Mapping[str, Any], images: Mapping[str, str], threshold: float) -> str:
    """One triplet."""

    def figure(image_id: str, caption: str) -> str:
        return f'<figure><img src="{images[image_id]}" alt="{escaped(image_id[:12])}" title="{escaped(image_id)}" loading="lazy"><figcaption>{caption}</figcaption></figure>'

    texts = "".join(
        f'<li><span>{escaped(text)}<small>{escaped(style)}</small></span><span class="score" title="judge: P(yes) of the target">{score:.2f}</span></li>'
        for text, style, score in zip(row["instructions"], row["styles"], row["judge_target"], strict=False)
    )
    negatives = []
    for n, (image_id, score) in enumerate(zip(row["negative_image_ids"], row["judge_negative"], strict=False)):
        hot = " hot" if score >= threshold else ""
        negatives.append(
            figure(image_id, f'<span class="score{hot}">{score:.2f}</span>{"<small>query</small>" if n == 0 else ""}')
        )
    chips = []
    for encoder in COLOURS:
        similarity = pair.get(f"similarity_{encoder}")
        if similarity is not None:
            on = encoder in row["mined_by"]
            chips.append(
                f'<span class="chip{" on" if on else ""}"{f" style=color:{COLOURS[encoder]}" if on else ""} title="{"mined it" if on else "did not mine it"}">{encoder} {similarity:.3f}</span>'
            )
    return (
        f'<article class="card"><div class="pair">{figure(row["query_image_id"], "<span>query</span>")}<div class="arrow">&rarr;</div>{figure(row["target_image_id"], "<span>target</span>")}</div>'
        f'<ol>{texts}</ol><div class="neg">{"".join(negatives[:10])}</div><div class="chips">{"".join(chips)}<span class="chip mono">{escaped(row["triplet_id"][:10])}</span></div></article>'
    )


TINY = "tasks/sample/checkpoints/"


def written_by(rows: Sequence[Mapping[str, Any]]) -> str:
    """Who wrote and who judged the rows, in a sentence or two; a warning where it was the sample world's checkpoints."""
    writers, judges = sorted({str(r["captioner"]) for r in rows}), sorted({str(r["judge"]) for r in rows})
    if not rows:
        return ""
    warning = (
        " Tiny checkpoints, trained on drawn scenes: on other images their words mean nothing."
        if any(TINY in n for n in (*writers, *judges))
        else ""
    )
    return f"Written with {', '.join(writers)}, judged by {', '.join(judges)}.{warning}"


def drop_panels(drops: Mapping[str, Mapping[str, int]]) -> str:
    """What every stage left out, by reason, as bars; stages in the order of the flow."""
    panels = []
    flow = list(REASONS)
    for stage, reasons in sorted(drops.items(), key=lambda e: (flow.index(e[0]) if e[0] in flow else len(flow), e[0])):
        top = max(reasons.values())
        bars = "".join(
            f'<div class="bar"><span>{escaped(reason.replace("_", " "))}<small>{escaped(why(stage, reason))}</small></span><i style="width:{100 * count / top:.1f}%"></i><b>{count:,}</b></div>'
            for reason, count in sorted(reasons.items(), key=lambda e: -e[1])
        )
        panels.append(
            f'<div class="panel"><h3>{escaped(stage)}</h3><p>{sum(reasons.values()):,} rows left out</p>{bars}</div>'
        )
    return "".join(panels) or '<div class="panel"><p>Nothing was left out.</p></div>'


def scores_table(metrics: Mapping[str, Any]) -> str:
    """Retrieval before and after: one row per model and kind of query."""
    names = (("map_at_5", "mAP@5"), ("recall_at_1", "Recall@1"), ("recall_at_10", "Recall@10"))
    rows = [
        (m, k, v)
        for m, kinds in metrics.items()
        if isinstance(kinds, Mapping)
        for k, v in kinds.items()
        if isinstance(v, Mapping)
    ]
    best = {n: max((v[n] for _, _, v in rows if isinstance(v.get(n), int | float)), default=None) for n, _ in names}
    lines = []
    for model, kind, values in rows:
        cells = "".join(
            f"<td{' class=best' if values.get(n) is not None and values.get(n) == best[n] else ''}>{f'{values[n]:.3f}' if isinstance(values.get(n), int | float) else '–'}</td>"
            for n, _ in names
        )
        lines.append(f"<tr><td>{escaped(model)}, {escaped(kind.replace('_', ' '))}</td>{cells}</tr>")
    head = "".join(f"<th>{label}</th>" for _, label in names)
    return f'<div class="panel"><table><tr><th>model, query</th>{head}</tr>{"".join(lines)}</table></div>'


EMPTY_RETRIEVAL = '<section id="retrieval"></section>'


def retrieval_section(metrics: Mapping[str, Any]) -> str:
    """The scores before and after; an empty section without scores, which `with_retrieval` fills later."""
    if not metrics:
        return EMPTY_RETRIEVAL
    lead = "CIRCO's metrics; base is the checkpoint that fine-tuning started from."
    return f'<section id="retrieval"><h2>Retrieval, before and after</h2><p class="lead">{lead}</p>{scores_table(metrics)}</section>'


def with_retrieval(text: str, evaluation: Mapping[str, Any]) -> str:
    """A page made before its version's model was evaluated, with the scores filled in."""
    return text.replace(EMPTY_RETRIEVAL, retrieval_section(evaluation.get("metrics") or {}), 1)


def page(
    version: Mapping[str, Any],
    cards: Sequence[str],
    histograms: Sequence[str],
    evaluation: Mapping[str, Any] | None,
    models: str,
) -> str:
    """The whole page; `models` says who wrote and judged the triplets."""
    rows, new = version["rows"], version["new_rows"]
    stats = [
        ("triplets", rows["triplets"], new["triplets"]),
        ("images", rows["images"], new["images"]),
        ("pairs", rows["pairs"], new["pairs"]),
    ]
    tiles = "".join(
        f'<div class="stat"><b>{total:,}</b><span>{name}, {fresh:,} new</span></div>' for name, total, fresh in stats
    )
    dropped = sum(c for reasons in version["drops"].values() for c in reasons.values())
    tiles += f'<div class="stat"><b>{dropped:,}</b><span>rows left out, with reasons</span></div>'
    metrics = (evaluation or {}).get("metrics") or {}
    retrieval = retrieval_section(metrics)
    after = f"after {escaped(version['parent'])}" if version.get("parent") else "the first version"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>{escaped(version["dataset"])} {escaped(version["version"])}: gallery</title><style>{STYLE}</style></head>
<body><main><header><div class="over">{escaped(version["dataset"])}</div><h1>Version {escaped(version["version"])}</h1>
<p class="lead">Composed-retrieval triplets: a query image, instructions, the target that they lead to, and hard negatives. {after[:1].upper() + after[1:]}, {escaped(version["date"])}.</p>
<div class="stats">{tiles}</div></header>
<section><h2>Triplets</h2><p class="lead">{len(cards)} drawn at random. Beside each instruction the judge's P(yes) for the target; below each negative the highest P(yes) over the instructions.
The first negative is always the query itself. Coloured: the similarity models that found the pair. {escaped(models)}</p><div class="cards">{"".join(cards)}</div></section>
<section><h2>What was left out, and why</h2><p class="lead">All versions up to this one, by stage. Each row stands in data/dropped with its reason and what it was.</p><div class="grid">{drop_panels(version["drops"])}</div></section>
<section><h2>Similarities</h2><p class="lead">Cosine of images to their nearest neighbours under each model. Pairs are mined inside the dashed window: nearer ones are copies, farther ones unrelated.</p>
<div class="grid">{"".join(histograms)}</div></section>{retrieval}
<footer>Fingerprint <span class="mono">{escaped(version["fingerprint"])}</span>, code <span class="mono">{escaped(version["git_commit"][:12])}</span>. Made by the MegaPairs factory.</footer>
</main></body></html>
"""


def build(store: Store, params: Params, version: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None) -> str:
    """The page of a version, at most 6 MB: images shrink until it fits, then fewer triplets are shown."""
    chosen = set(
        sample(
            store.read_table("triplets", ["triplet_id"]).column("triplet_id").to_pylist(),
            params.version.gallery_triplets,
            version["version"],
        )
    )
    import pyarrow.compute as pc

    all_rows = store.read_table("triplets")
    rows = all_rows.filter(pc.is_in(all_rows.column("triplet_id"), value_set=_strings(chosen))).to_pylist()
    rows.sort(key=lambda r: seeded_hash(version["version"], r["triplet_id"]))
    pair_ids = {r["pair_id"] for r in rows}
    pairs_table = store.read_table(
        "pairs", ["pair_id", "similarity_semantic", "similarity_pattern", "similarity_caption"]
    )
    pairs = {
        p["pair_id"]: p
        for p in pairs_table.filter(pc.is_in(pairs_table.column("pair_id"), value_set=_strings(pair_ids))).to_pylist()
    }
    histograms = []
    for encoder, window in params.mine.windows.items():
        _, vectors, revision = store.read_embeddings(encoder)
        model = (
            "/".join(params.embed.encoders[encoder].model.split("/")[-2:]) if encoder in params.embed.encoders else ""
        )
        image = histogram(
            nearest_similarities(vectors, params.mine.neighbours, params.open_run.seed).tolist(),
            window.low,
            window.high,
            COLOURS[encoder],
            f"cosine similarities, {encoder}",
        )
        histograms.append(
            f'<div class="panel"><h3 style="color:{COLOURS[encoder]}">{escaped(encoder)}</h3><p>{escaped(model)}, window {window.low:g} to {window.high:g}, revision <span class="mono">{escaped(revision[:12])}</span></p>{image}</div>'
        )
    ids = sorted({i for r in rows for i in (r["query_image_id"], r["target_image_id"], *r["negative_image_ids"][:10])})
    text, models = "", written_by(rows)
    for side, quality in SIZES:
        images = {i: thumbnail(store, i, side, quality) for i in ids}
        cards = [card(r, pairs.get(r["pair_id"], {}), images, params.judge.negative_threshold) for r in rows]
        text = page(version, cards, histograms, evaluation, models)
        if len(text.encode()) <= MAX_BYTES:
            return text
    while len(text.encode()) > MAX_BYTES and cards:
        cards = cards[: len(cards) * 3 // 4]
        text = page(version, cards, histograms, evaluation, models)
    return text


def _strings(values: set[str]) -> Any:
    import pyarrow as pa

    return pa.array(sorted(values), pa.string())


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
