"""What `python -m tasks calibrate --figures FOLDER` saves: the distributions drawn, their numbers, and pairs from all
over each window to look at.

Pure functions, text out. The page needs nothing: no script, images inside as small JPEGs, every text escaped; it opens
from file://. Its looks are the gallery's (tasks/pages/gallery.py).
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
BAND_NAMES = ("top of the window, the nearest", "middle", "foot, the farthest")  # of three bands; others go by number
WIDTH, HEIGHT, HEAD, FOOT = 1120, 250, 30, 48  # of one plot, px
COLOURS = {"random pairs": "#7b8494", "nearest": "#4a68e8", "10th nearest": "#1a9a88", "near-copies": "#d0453c"}
MEANING = {
    "random pairs": "two images drawn at random",
    "nearest": "an image and its nearest other one",
    "10th nearest": "an image and its tenth nearest",
    "near-copies": "an image and the same one re-encoded, scaled down or cropped by 3%",
}
MORE_STYLE = """.cards{grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));gap:14px;margin-top:8px}.card{padding:12px;gap:8px}
.pair{grid-template-columns:1fr 1fr;gap:8px;align-items:start}.cosine{font-weight:650;font-variant-numeric:tabular-nums}h3{margin:28px 0 0;font-size:16px}h3 span{color:var(--soft);font-weight:400}
.key{display:flex;flex-wrap:wrap;gap:4px 22px;margin:10px 0 0;padding:0;list-style:none;font-size:13px;color:var(--soft)}.key li{display:block;padding:0;background:none;font-size:13px}
.key i{display:inline-block;width:18px;height:3px;border-radius:2px;vertical-align:middle;margin-right:7px}.key b{color:var(--ink);font-weight:600}"""


def band_pairs(
    query: np.ndarray,
    target: np.ndarray,
    similarity: np.ndarray,
    *,
    low: float,
    high: float,
    bands: int = BANDS,
    count: int = PAIRS,
    seed: int = 0,
) -> list[list[int]]:
    """Positions of pairs drawn from equal bands of a window, the nearest band first; a query is shown once in a band.

    Args:
        query, target, similarity: (m,) pairs; those outside the window are passed over, and of (a, b) and (b, a) one is
            taken.
        low, high: the window, low <= cosine < high.
        count: pairs in all: as many from each band, the nearest ones have what is over, and what another band has too
            few of.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(query))
    band = np.floor((high - similarity) / (high - low) * bands).astype(int).clip(0, bands - 1)
    drawn: list[list[int]] = []
    for b in range(bands):
        chosen: list[int] = []
        seen: set[int] = set()
        for n in order[(band[order] == b) & (similarity[order] >= low) & (similarity[order] < high)].tolist():
            if len(chosen) < count and not {int(query[n]), int(target[n])} & seen:
                chosen.append(n)
                seen |= {int(query[n]), int(target[n])}
        drawn.append(chosen)
    shown = [min(len(drawn[b]), count // bands + (b < count % bands)) for b in range(bands)]
    for b in range(bands):
        shown[b] += min(len(drawn[b]) - shown[b], count - sum(shown))
    return [sorted(chosen[:some], key=lambda n: (-similarity[n], n)) for chosen, some in zip(drawn, shown, strict=True)]


def _ticks(left: float, right: float) -> list[float]:
    """Some six round numbers between two cosines."""
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if (right - left) / s <= 8)
    return [n * step for n in range(int(np.ceil(left / step - 1e-9)), int(np.floor(right / step + 1e-9)) + 1)]


def histogram_svg(title: str, values: Mapping[str, np.ndarray], low: float, high: float) -> str:
    """Distributions of cosine as lines, each scaled to its own peak, and the window as a band between two dashed lines.

    Args:
        title: a line above.
        values: name -> cosines; a name of COLOURS. Empty ones are left out.
        low, high: the window.
    """
    shown = {name: v for name, v in values.items() if len(v)}
    left = min([low, *(float(np.quantile(v, 0.001)) for v in shown.values())]) - 0.01
    edges = np.linspace(left, 1.005, BINS + 1)
    floor = HEIGHT - FOOT
    x = lambda s: (s - left) / (edges[-1] - left) * WIDTH  # noqa: E731
    parts = [f'<text x="0" y="14" font-size="14" fill="currentColor">{html.escape(title)}</text>']
    parts.append(
        f'<rect x="{x(low):.1f}" y="{HEAD}" width="{max(x(high) - x(low), 1):.1f}" height="{floor - HEAD}" fill="#4a68e8" opacity=".13"/>'
    )
    for edge in (low, high):
        parts.append(
            f'<line x1="{x(edge):.1f}" x2="{x(edge):.1f}" y1="{HEAD}" y2="{floor}" stroke="#4a68e8" stroke-dasharray="4 4"/>'
        )
    parts.append(f'<line x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}" stroke="#7b8494" opacity=".5"/>')
    for tick in _ticks(left, 1.0):
        parts.append(
            f'<text x="{min(max(x(tick), 14), WIDTH - 14):.1f}" y="{floor + 16}" font-size="12" fill="#7b8494" text-anchor="middle">{tick:.2f}</text>'
        )
    for n, (name, v) in enumerate(shown.items()):
        counts, _ = np.histogram(v, edges)
        middles = (edges[1:] + edges[:-1]) / 2
        points = " ".join(
            f"{x(m):.1f},{floor - (floor - HEAD - 8) * c / max(counts.max(), 1):.1f}"
            for m, c in zip(middles, counts, strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2" stroke-linejoin="round"/>'
        )
        parts.append(
            f'<text x="{140 * n}" y="{HEIGHT - 8}" font-size="13" font-weight="600" fill="{COLOURS[name]}">{html.escape(name)}</text>'
        )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" color="#7b8494" font-family="system-ui,sans-serif" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'


def stacked_svg(plots: Sequence[str]) -> str:
    """Several plots below each other as one file."""
    height, margin = HEIGHT + 20, 20
    inner = "".join(
        p.replace("<svg ", f'<svg x="{margin}" y="{margin + n * height}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for n, p in enumerate(plots)
    )
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 2 * margin} {height * len(plots) + margin}"><rect width="100%" height="100%" fill="#fff"/>{inner}</svg>'


def _figure(image: Image, text: str, side_px: int = 200) -> str:
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=76)
    caption = f"<figcaption>{html.escape(text[:160])}{'...' if len(text) > 160 else ''}</figcaption>" if text else ""
    return f'<figure><img alt="" loading="lazy" src="data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}">{caption}</figure>'


def pairs_section(
    role: str,
    title: str,
    plot: str,
    bands: Sequence[Sequence[tuple[float, Image, Image, str, str]]],
    low: float,
    high: float,
    nearest_inside: float = 0.0,
) -> str:
    """One encoder's part of the page.

    Args:
        role: the encoder's.
        title: its model.
        plot: of `histogram_svg`.
        bands: per band, the nearest first, pairs: cosine, both images, both captions (empty: none is shown).
        low, high: the window.
        nearest_inside: share of the images whose nearest lies in the window.
    """
    shown = sum(map(len, bands))
    lead = f"{html.escape(title)}. Window {low:.4f} to {high:.4f} (shaded): {nearest_inside:.0%} of the images have their nearest inside. {shown} pairs from it below."
    parts = [f'<section><h2>{html.escape(role)}</h2><p class="lead">{lead}</p><div class="panel">{plot}</div>']
    step = (high - low) / len(bands)
    for n, pairs in enumerate(bands):
        name = BAND_NAMES[n] if len(bands) == len(BAND_NAMES) else f"band {n + 1}"
        parts.append(
            f'<h3>{name[:1].upper() + name[1:]} <span>cosine {high - (n + 1) * step:.4f} to {high - n * step:.4f}</span></h3><div class="cards">'
        )
        for similarity, a, b, text_a, text_b in pairs:
            parts.append(
                f'<article class="card"><span class="cosine">{similarity:.4f}</span><div class="pair">{_figure(a, text_a)}{_figure(b, text_b)}</div></article>'
            )
        parts.append("</div>" if pairs else '</div><p class="lead">No pair of the sample lies here.</p>')
    return "".join(parts) + "</section>"


def page(sections: Sequence[str]) -> str:
    """The whole page."""
    from tasks.pages.page import STYLE

    lead = (
        "Each encoder finds related images by cosine similarity; pairs inside its window become candidates. Look at the pairs: "
        "the same image twice at the top of a window says that its high end is too high, strangers at its foot say that its low end is too low."
    )
    key = "".join(
        f'<li><i style="background:{COLOURS[name]}"></i><b>{name}</b>: {meaning}</li>'
        for name, meaning in MEANING.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';img-src data:;style-src 'unsafe-inline'\">"
        f"<title>Similarity windows</title><style>{STYLE}{MORE_STYLE}</style></head><body><main><h1>Similarity windows</h1>"
        f'<p class="lead">{lead}</p><p class="lead">The curves, each scaled to its own peak:</p><ul class="key">{key}</ul>{"".join(sections)}</main></body></html>'
    )
