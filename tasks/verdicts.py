# ruff: noqa: E501 - lines of HTML are as long as they are
"""Verdicts: one self-contained HTML page with triplets that were accepted and pairs that were rejected, each with its reason.

    python -m tasks.verdicts --root CLONE --out verdicts.html [--count 30]

Reads triplets, pairs, captioned, the dropped rows of caption and judge, and the pictures, of a clone or of a run's worktree. The rows
are drawn by their ids alone, rejected ones over all reasons in turn. In the gallery's style: no script, nothing loaded, every
text escaped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.gallery import STYLE, escaped, sample, thumbnail
from tasks.reasons import why
from tasks.store import Store

SIDE_PX, QUALITY = 144, 78


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


def texts_of(reason: str, detail: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(text, what is said of it) of a dropped row's detail, whatever stage wrote it."""
    out = [(str(t["instruction"]), f"{t['reason'].replace('_', ' ')}, P(yes) {t['p_yes']:.2f}") for t in detail.get("instructions", [])]
    if "instruction" in detail:
        out.append((str(detail["instruction"]), f"{detail['style']}, P(yes) {detail['p_yes']:.2f}"))
    out += [(str(text), f"{what}: {detail.get('problems', {}).get(what, reason).replace('_', ' ')}") for what, text in detail.get("replies", {}).items()]
    out += [(str(text), "stood so far") for text in detail.get("kept", {}).values()]
    out += [(str(text), "found by " + " and ".join(detail.get("found_by") or [])) for text in detail.get("texts", [])]
    return out or ([("a negative", f"P(yes) {detail['p_yes']:.2f}")] if "p_yes" in detail else [])


def figure(src: str, caption: str) -> str:
    """One picture with its caption."""
    return f'<figure><img src="{src}" alt="" loading="lazy"><figcaption><span>{escaped(caption)}</span></figcaption></figure>'


def entry(pictures: Sequence[tuple[str, str]], texts: Sequence[tuple[str, str]], label: str, sentence: str, is_good: bool) -> str:
    """One triplet: its pictures (source, caption), its texts (text, what is said of it) and the verdict."""
    shown = '<div class="arrow">&rarr;</div>'.join(figure(*p) for p in pictures[:2]) + "".join(figure(*p) for p in pictures[2:])
    lines = "".join(f"<li><span>{escaped(text)}<small>{escaped(said)}</small></span></li>" for text, said in texts)
    colour = "var(--good)" if is_good else "var(--bad)"
    verdict = f'<div class="chips"><span class="chip on" style="color:{colour}">{escaped(label)}</span></div><small>{escaped(sentence)}</small>'
    return f'<article class="card"><div class="pair">{shown}</div><ol>{lines}</ol>{verdict}</article>'


def build(store: Store, count: int = 30) -> str:
    """The page."""
    triplets = {t["triplet_id"]: t for t in store.read_table("triplets").to_pylist()}
    pairs = {p["pair_id"]: p for p in store.read_table("pairs").to_pylist()}
    captioned = {c["pair_id"]: c for c in store.read_table("captioned", ["pair_id", "description"]).to_pylist()}
    dropped = [r for stage in ("caption", "judge") for r in store.read_dropped(stage).to_pylist() if r["key"].partition(":")[0] in pairs]
    accepted = [triplets[i] for i in sample(list(triplets), count, "verdicts")]
    rejected = spread(dropped, count, "verdicts")

    def picture(image_id: str) -> str:
        return thumbnail(store, image_id, SIDE_PX, QUALITY)

    good = []
    for t in accepted:
        worst, nearest = min(t["judge_target"]), max(t["judge_negative"], default=0.0)
        texts = [(text, f"{style}, P(yes) {yes:.2f}") for text, style, yes in zip(t["instructions"], t["styles"], t["judge_target"], strict=True)]
        reason = f"every text leads to the target (P(yes) at least {worst:.2f}) and to none of {len(t['negative_image_ids'])} negatives (at most {nearest:.2f})"
        if t["found_by"] is not None:
            reason += f"; alone: {' and '.join(m for m in t['found_by'] if m != 'composed') or 'neither text nor picture'} finds it first"
        good.append(entry([(picture(t["query_image_id"]), "query"), (picture(t["target_image_id"]), "target")], texts, "accepted", reason, True))
    bad = []
    for row in rejected:
        pair_id, _, what = row["key"].partition(":")
        pair, detail = pairs[pair_id], json.loads(row["detail"])
        shown = [(picture(pair["query_image_id"]), "query"), (picture(pair["target_image_id"]), "target")]
        if "image_id" in detail:
            shown[1] = (picture(detail["image_id"]), "the negative")
        level = "the pair" if not what else "a negative" if "image_id" in detail else "a text"
        texts = texts_of(row["reason"], detail)
        description = captioned.get(pair_id, {}).get("description") or detail.get("description") or ""
        if description:
            texts = [*texts, (description, "description")]
        label = f"{row['stage']}: {row['reason'].replace('_', ' ')} ({level})"
        bad.append(entry(shown, texts, label, why(row["stage"], row["reason"]), False))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Verdicts</title><style>{STYLE}</style></head><body><main><div class='over'>MegaPairs factory</div><h1>What was accepted, what was rejected, and why</h1>"
        f"<p class='lead'>{len(good)} of {len(triplets):,} accepted triplets and {len(bad)} of {len(dropped):,} rows left out by caption and judge, drawn by their ids; "
        f"rejected ones over all reasons in turn.</p><h2>Accepted</h2><div class='cards'>{''.join(good)}</div><h2>Rejected</h2><div class='cards'>{''.join(bad)}</div></main></body></html>"
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tasks.verdicts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=".", type=Path, help="a clone after `dvc pull`, or a run's worktree")
    parser.add_argument("--out", default="verdicts.html", type=Path)
    parser.add_argument("--count", default=30, type=int, help="rows of either kind")
    args = parser.parse_args(argv)
    Store(args.root).write_bytes(args.out, build(Store(args.root), args.count).encode())
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
