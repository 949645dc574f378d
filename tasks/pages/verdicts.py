"""Verdicts: one self-contained HTML page with triplets that were accepted and pairs that were rejected, each with its
reason.

    python -m tasks verdicts --root CLONE --out verdicts.html [--count 30]

Reads triplets, pairs, captioned, the dropped rows of caption and judge, the judge's thresholds (params.yaml) and the
images, of a clone or of a run's worktree. Three parts: triplets accepted, pairs rejected as a whole, and what was taken
out of triplets that stayed (a text, a negative). Rows are drawn by their ids alone, rejected ones over all reasons in
turn. In the gallery's style: no script, nothing loaded, every text escaped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import Params, load_params
from tasks.errors import ConfigError
from tasks.names import stable_id
from tasks.pages.page import STYLE, escaped, sample, thumbnail
from tasks.reasons import why
from tasks.store import Store

SIDE_PX, QUALITY = 192, 80
OWN_STYLE = """
.cards{align-items:start}.card{gap:12px}.verdict{display:grid;gap:4px}.verdict small{color:var(--soft);font-size:13px;line-height:1.4}.chips{margin-top:0}
.three{display:grid;grid-template-columns:1fr 1fr 1fr;gap:10px}.bad .score{color:var(--bad)}.plain .score{color:var(--soft)}
.said{margin:0;border-top:1px solid var(--line);padding-top:10px;font-size:13px;line-height:1.45;color:var(--soft)}.said b{font-weight:600}
nav{display:flex;flex-wrap:wrap;gap:8px 18px;font-size:14px;margin-top:4px}nav a{color:var(--accent)}
"""
SAID = {
    "query_fits": "the query itself meets it",
    "partial_fits": "states one change of several, and a negative meets it",
}


@dataclass(frozen=True)
class Text:
    """A text on a card: what is said of it, its score, and whether it was taken (None: neither)."""

    text: str
    said: str
    score: float | None = None
    is_good: bool | None = None


def spread(rows: Sequence[Mapping[str, Any]], count: int, salt: str) -> list[Mapping[str, Any]]:
    """`count` rows, one of each reason in turn, drawn by their keys alone; the same for the same rows."""
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    place = {key: n for n, key in enumerate(sample([r["key"] for r in rows], len(rows), salt))}
    for row in sorted(rows, key=lambda r: (place[r["key"]], r["reason"])):
        by_reason.setdefault(row["reason"], []).append(row)
    out: list[Mapping[str, Any]] = []
    while len(out) < count and any(by_reason.values()):
        for reason in sorted(by_reason):
            if by_reason[reason] and len(out) < count:
                out.append(by_reason[reason].pop(0))
    return out


def texts_of(reason: str, detail: Mapping[str, Any]) -> list[Text]:
    """The texts of a dropped row's detail, whatever stage wrote it."""
    judged = [*detail.get("instructions", []), *([detail] if "instruction" in detail else [])]
    out = [judged_text(t) for t in judged]
    for what, text in detail.get("replies", {}).items():
        out.append(
            Text(text or "(nothing)", f"{what}: {words(detail.get('problems', {}).get(what, reason))}", None, False)
        )
    out += [Text(text, f"{style}: could be used") for style, text in detail.get("kept", {}).items()]
    out += [
        Text(text, f"the target is found first by {' and by '.join(detail.get('found_by') or [])}", None, False)
        for text in detail.get("texts", [])
    ]
    return out


def judged_text(row: Mapping[str, Any]) -> Text:
    """A text that the judge took out. Its number is the target's where that decided, else it stands with the image that
    it is of.
    """
    if row["reason"] == "wrong_instruction":
        return Text(row["instruction"], f"{row['style']}: does not lead to the target", row["p_yes"], False)
    return Text(
        row["instruction"],
        f"{row['style']}: {SAID.get(row['reason'], words(row['reason']))} ({row['p_yes']:.2f})",
        None,
        False,
    )


def words(reason: str) -> str:
    """A reason as words."""
    return reason.replace("_", " ")


def figure(src: str, caption: str) -> str:
    """One image with its caption."""
    return f'<figure><img src="{src}" alt="" loading="lazy"><figcaption><span>{escaped(caption)}</span></figcaption></figure>'


def entry(
    images: Sequence[tuple[str, str]],
    texts: Sequence[Text],
    label: str,
    sentence: str,
    *,
    is_good: bool,
    description: str = "",
) -> str:
    """One card: the verdict, its images (source, caption), its texts, and what the describing model said."""
    figures = [figure(*p) for p in images]
    shown = (
        f'<div class="pair">{figures[0]}<div class="arrow">&rarr;</div>{figures[1]}</div>'
        if len(figures) == 2
        else f'<div class="three">{"".join(figures)}</div>'
    )
    lines = []
    for t in texts:
        kind = "plain" if t.is_good is None else "good" if t.is_good else "bad"
        score = "" if t.score is None else f'<span class="score">{t.score:.2f}</span>'
        lines.append(f'<li class="{kind}"><span>{escaped(t.text)}<small>{escaped(t.said)}</small></span>{score}</li>')
    colour = "var(--good)" if is_good else "var(--bad)"
    verdict = f'<div class="verdict"><div class="chips"><span class="chip on" style="color:{colour}">{escaped(label)}</span></div><small>{escaped(sentence)}</small></div>'
    said = f'<p class="said"><b>Described as</b> {escaped(description)}</p>' if description else ""
    return f'<article class="card">{verdict}{shown}<ol>{"".join(lines)}</ol>{said}</article>'


def accepted_sentence(triplet: Mapping[str, Any]) -> str:
    """Why a triplet was accepted, and whether it is a shortcut."""
    worst, nearest, count = (
        min(triplet["judge_target"]),
        max(triplet["judge_negative"], default=0.0),
        len(triplet["negative_image_ids"]),
    )
    out = f"Every text leads to the target ({worst:.2f} or more) and to none of {count} negative{'s' * (count != 1)}, the query among them ({nearest:.2f} or less)."
    if triplet["found_by"] is None:
        return out
    alone = [{"text": "the text", "image": "the image"}[m] for m in triplet["found_by"] if m != "composed"]
    return f"{out} {'A shortcut: ' + ' and '.join(alone) + ' alone would find it first.' if alone else 'Neither text nor image alone would find it first.'}"


def rejected_sentence(row: Mapping[str, Any], params: Params | None) -> str:
    """Why a row was left out: the reason's sentence, and the number that it is measured by."""
    _, _, sentence = why(row["stage"], row["reason"]).rpartition(": ")
    out = sentence[:1].upper() + sentence[1:] + "."
    if params is not None and row["reason"] in ("wrong_target", "wrong_instruction"):
        out += f" A text must reach {params.judge.threshold:g} for the target."
    if params is not None and row["reason"] in ("ambiguous", "partial_fits", "false_negative", "query_fits"):
        out += f" No other image may reach {params.judge.negative_threshold:g}."
    return out


def build(store: Store, count: int = 30) -> str:
    """The page."""
    triplets = {t["triplet_id"]: t for t in store.read_table("triplets").to_pylist()}
    columns = ["pair_id", "query_image_id", "target_image_id"]
    pairs = {p["pair_id"]: p for p in store.read_table("pairs", columns).to_pylist()}
    back = [{"query_image_id": p["target_image_id"], "target_image_id": p["query_image_id"]} for p in pairs.values()]
    # what caption.reverse wrote has no row of its own
    pairs = {stable_id(p["query_image_id"], p["target_image_id"]): p for p in back} | pairs
    captioned = {
        c["pair_id"]: c
        for c in store.read_table("captioned", ["pair_id", "description", "instructions", "styles"]).to_pylist()
    }
    by_pair = {t["pair_id"]: t for t in triplets.values()}
    dropped = [
        r
        for stage in ("caption", "judge")
        for r in store.read_dropped(stage).to_pylist()
        if r["key"].partition(":")[0] in pairs
    ]
    whole, part = (
        [r for r in dropped if ":" not in r["key"]],
        [r for r in dropped if r["key"].partition(":")[0] in by_pair and ":" in r["key"]],
    )
    try:
        params: Params | None = load_params(store.root / "params.yaml")
    except ConfigError:
        params = None  # a bare copy of the tables: the page goes without the thresholds

    def image(image_id: str) -> str:
        return thumbnail(store, image_id, SIDE_PX, QUALITY)

    good = []
    for t in (triplets[i] for i in sample(list(triplets), count, "verdicts")):
        texts = [
            Text(text, style, yes, True)
            for text, style, yes in zip(t["instructions"], t["styles"], t["judge_target"], strict=True)
        ]
        ends = [(image(t["query_image_id"]), "query"), (image(t["target_image_id"]), "target")]
        good.append(entry(ends, texts, "accepted", accepted_sentence(t), is_good=True, description=t["description"]))

    def refused(row: Mapping[str, Any]) -> str:
        pair_id, _, what = row["key"].partition(":")
        pair, detail = pairs[pair_id], json.loads(row["detail"] or "{}")
        shown = [(image(pair["query_image_id"]), "query"), (image(pair["target_image_id"]), "target")]
        texts, label = texts_of(row["reason"], detail), f"{row['stage']}: {words(row['reason'])}"
        if "image_id" in detail:
            shown.append((image(detail["image_id"]), f"negative, {detail['p_yes']:.2f}"))
            texts = [
                Text(text, "leads to the negative as well as to the target")
                for text in by_pair[pair_id]["instructions"]
            ]
        description = captioned.get(pair_id, {}).get("description") or detail.get("description") or ""
        return entry(shown, texts, label, rejected_sentence(row, params), is_good=False, description=description)

    bad = [refused(row) for row in spread(whole, count, "verdicts")]
    taken = [refused(row) for row in spread(part, max(1, count * 2 // 5), "verdicts")]
    nothing = "<p class='lead'>None in this version.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Verdicts</title><style>{STYLE}{OWN_STYLE}</style></head><body><main><div class='over'>MegaPairs factory</div><h1>What was accepted, what was rejected, and why</h1>"
        "<p class='lead'>A triplet is a query image, texts that lead from it to a target image, and negatives that they must not lead to. The number beside a text is the "
        "judge's probability that the target is what the text makes of the query, from 0 to 1.</p>"
        f"<nav><a href='#accepted'>Accepted: {len(good)} of {len(triplets):,}</a><a href='#rejected'>Rejected: {len(bad)} of {len(whole):,}</a>"
        f"<a href='#taken'>Taken out of accepted ones: {len(taken)} of {len(part):,}</a></nav>"
        f"<h2 id='accepted'>Accepted</h2><p class='lead'>Drawn by their ids alone.</p><div class='cards'>{''.join(good)}</div>{'' if good else nothing}"
        f"<h2 id='rejected'>Rejected</h2><p class='lead'>Pairs that gave no triplet, over all reasons in turn.</p><div class='cards'>{''.join(bad)}</div>{'' if bad else nothing}"
        "<h2 id='taken'>Taken out of accepted ones</h2><p class='lead'>Texts and negatives that went while their triplet stayed, over all reasons in turn.</p>"
        f"<div class='cards'>{''.join(taken)}</div>{'' if taken else nothing}</main></body></html>"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks verdicts`."""
    parser.add_argument("--root", default=".", type=Path, help="a clone after `dvc pull`, or a run's worktree")
    parser.add_argument("--out", default="verdicts.html", type=Path, help="the page (default: verdicts.html)")
    parser.add_argument("--count", default=30, type=int, help="rows of either kind, a count (default 30)")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Write the page; {"path", "size_bytes"}."""
    Store(args.root).write_bytes(args.out, build(Store(args.root), args.count).encode())
    size_bytes = args.out.stat().st_size
    print(f"{args.out}: {size_bytes / 1e6:.1f} MB")
    return {"path": str(args.out), "size_bytes": size_bytes}
