# ruff: noqa: E501 - lines of HTML and SVG are as long as they are
"""What `python -m tasks calibrate --figures FOLDER` saves: the distributions drawn, their numbers, and pairs from all over each window to look at.

Pure functions, text out. The page needs nothing: no script, pictures inside as small JPEGs, every text escaped; it opens from file://.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

BINS = 80
PAIRS, BANDS = 20, 3  # pairs shown of an encoder, over so many bands of its window
WIDTH, HEIGHT = 640, 180  # of one plot, px
COLOURS = {"random pairs": "#667085", "nearest": "#3653d9", "10th nearest": "#0f7a6c", "near-copies": "#b3261e"}
STYLE = """:root{color-scheme:light dark;--bg:#f7f6f3;--card:#fff;--ink:#1b2230;--soft:#667085;--line:#e4e1d9}
@media (prefers-color-scheme:dark){:root{--bg:#10131a;--card:#181c26;--ink:#e8eaf0;--soft:#98a2b3;--line:#2a3040}}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}main{max-width:1180px;margin:0 auto;padding:32px 20px 64px}
h2{margin:44px 0 4px}h3{margin:24px 0 8px;font-size:15px;color:var(--soft)}p{color:var(--soft);max-width:80ch}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:12px}.pair{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:10px}
.pair div{display:grid;grid-template-columns:1fr 1fr;gap:6px}.pair img{width:100%;aspect-ratio:1;object-fit:contain}.pair b{font-variant-numeric:tabular-nums}
.pair small{display:block;color:var(--soft);overflow-wrap:anywhere}svg{background:var(--card);border:1px solid var(--line);border-radius:12px;width:100%;height:auto}"""


def band_pairs(
    query: np.ndarray, target: np.ndarray, similarity: np.ndarray, *, low: float, high: float, bands: int = BANDS, count: int = PAIRS, seed: int = 0
) -> list[list[int]]:
    """Positions of pairs drawn from equal bands of a window, the nearest band first; a query is shown once in a band.

    Args:
        query, target, similarity: (m,) pairs; those outside the window are passed over, and of (a, b) and (b, a) one is taken.
        low, high: the window, low <= cosine < high.
        count: pairs in all: as many from each band, the nearest ones have what is over.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(query))
    band = np.floor((high - similarity) / (high - low) * bands).astype(int).clip(0, bands - 1)
    out: list[list[int]] = []
    for b in range(bands):
        wanted = count // bands + (b < count % bands)
        chosen: list[int] = []
        seen: set[int] = set()
        for n in order[(band[order] == b) & (similarity[order] >= low) & (similarity[order] < high)].tolist():
            if len(chosen) < wanted and not {int(query[n]), int(target[n])} & seen:
                chosen.append(n)
                seen |= {int(query[n]), int(target[n])}
        out.append(sorted(chosen, key=lambda n: (-similarity[n], n)))
    return out


def histogram_svg(title: str, values: Mapping[str, np.ndarray], low: float, high: float) -> str:
    """Distributions of cosine as lines, each scaled to its own peak, and the window as a band.

    Args:
        title: a line above.
        values: name -> cosines; a name of COLOURS. Empty ones are left out.
        low, high: the window.
    """
    shown = {name: v for name, v in values.items() if len(v)}
    left = min([low, *(float(np.quantile(v, 0.001)) for v in shown.values())])
    edges = np.linspace(left - 0.01, 1.005, BINS + 1)
    x = lambda s: (s - edges[0]) / (edges[-1] - edges[0]) * WIDTH  # noqa: E731
    parts = [f'<text x="8" y="16" font-size="13" fill="currentColor">{html.escape(title)}</text>']
    parts.append(f'<rect x="{x(low):.1f}" y="24" width="{max(x(high) - x(low), 1):.1f}" height="{HEIGHT - 44}" fill="#3653d9" opacity=".12"/>')
    for n, (name, v) in enumerate(shown.items()):
        counts, _ = np.histogram(v, edges)
        middles = (edges[1:] + edges[:-1]) / 2
        points = " ".join(f"{x(m):.1f},{HEIGHT - 20 - (HEIGHT - 50) * c / max(counts.max(), 1):.1f}" for m, c in zip(middles, counts, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.6"/>')
        parts.append(f'<text x="{8 + 110 * n}" y="{HEIGHT + 14}" font-size="11" fill="{COLOURS[name]}">{html.escape(name)}</text>')
    for s, anchor in ((edges[0], "start"), (low, "end"), (high, "start")):
        parts.append(f'<text x="{min(max(x(s), 2), WIDTH - 40):.1f}" y="{HEIGHT - 6}" font-size="10" fill="#667085" text-anchor="{anchor}">{s:.4f}</text>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 24}" color="#667085" font-family="system-ui,sans-serif" role="img">{"".join(parts)}</svg>'


def stacked_svg(plots: Sequence[str]) -> str:
    """Several plots below each other as one file."""
    height = HEIGHT + 24
    inner = "".join(p.replace("<svg ", f'<svg x="0" y="{n * height}" width="{WIDTH}" height="{height}" ', 1) for n, p in enumerate(plots))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height * len(plots)}">{inner}</svg>'


def _picture(picture: Image, side_px: int = 144) -> str:
    small = picture.convert("RGB")
    small.thumbnail((side_px, side_px))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=76)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}">'


def pairs_section(title: str, plot: str, bands: Sequence[Sequence[tuple[float, Image, Image, str, str]]], low: float, high: float) -> str:
    """One encoder's part of the page.

    Args:
        title: the encoder and its model.
        plot: of `histogram_svg`.
        bands: per band, the nearest first, pairs: cosine, both pictures, both captions.
        low, high: the window.
    """
    parts = [f"<h2>{html.escape(title)}</h2>{plot}"]
    step = (high - low) / len(bands)
    for n, pairs in enumerate(bands):
        parts.append(f"<h3>cosine {high - (n + 1) * step:.4f} to {high - n * step:.4f}: {len(pairs)} pairs</h3><div class='pairs'>")
        for similarity, a, b, text_a, text_b in pairs:
            texts = "".join(f"<small>{html.escape(t[:160])}</small>" for t in (text_a, text_b))
            parts.append(f"<div class='pair'><b>{similarity:.4f}</b><div>{_picture(a)}{_picture(b)}</div>{texts}</div>")
        parts.append("</div>")
    return "".join(parts)


def page(sections: Sequence[str]) -> str:
    """The whole page."""
    lead = "Pairs that the windows would let in, drawn from three bands of each: near-copies at the top of a window say that its high end is too high, strangers at its foot that its low end is too low."
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Windows</title><style>{STYLE}</style><main><h1>Windows</h1><p>{lead}</p>{"".join(sections)}</main></html>'
