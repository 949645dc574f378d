"""Figures of `python -m tasks calibrate --figures FOLDER`: distributions of similarity as charts, and pairs to look at
from all over each encoder's window.

Pure functions, text out. The page needs nothing: no script, images inside as small JPEGs, every text escaped; it opens
from file://. Its words and marks are in tasks/pages/templates/calibration.html.j2, its look in style.css.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.config import Window
from tasks.pages.charts import Axis, Band, Frame, Series, lines, standalone
from tasks.pages.images import jpeg_uri
from tasks.pages.render import html

if TYPE_CHECKING:
    from PIL.Image import Image

BINS = 80
PAIRS, BANDS = 20, 3  # pairs shown of an encoder, over so many bands of its window
BAND_NAMES = ("Top of the window: the nearest pairs", "Middle", "Foot of the window: the farthest pairs")
SIDE_PX, QUALITY = 200, 76
CAPTION_CHARS = 160


@dataclass(frozen=True)
class Curve:
    """One distribution in the charts.

    Attributes:
        meaning: half a sentence for a person.
        variable: the stylesheet's variable that colours it on the page.
        colour: the same in a file of its own.
    """

    meaning: str
    variable: str
    colour: str


CURVES = {
    "random pairs": Curve("two images drawn at random", "random", "#5c6678"),
    "nearest": Curve("an image and its nearest neighbour", "nearest", "#3653d9"),
    "10th nearest": Curve("an image and its tenth nearest neighbour", "tenth", "#0f7364"),
    "near-copies": Curve("an image and itself re-encoded, scaled down or cropped by 3%", "copies", "#b3261e"),
}


@dataclass(frozen=True)
class PairImages:
    """Two images inside a window; an empty caption is not shown."""

    similarity: float
    query: Image
    target: Image
    query_caption: str = ""
    target_caption: str = ""


@dataclass(frozen=True)
class EncoderFigures:
    """What the page shows of one encoder.

    Attributes:
        role: the encoder's.
        model: its model and revision.
        window: low <= cosine < high.
        cosines: name of CURVES -> cosines; empty ones are left out.
        nearest_inside: share of the images whose nearest neighbour lies in the window.
        bands: pairs from equal bands of the window, the nearest band first.
    """

    role: str
    model: str
    window: Window
    cosines: Mapping[str, np.ndarray]
    nearest_inside: float = 0.0
    bands: Sequence[Sequence[PairImages]] = ()


def band_pairs(
    query: np.ndarray,
    target: np.ndarray,
    similarity: np.ndarray,
    window: Window,
    *,
    bands: int = BANDS,
    count: int = PAIRS,
    seed: int = 0,
) -> list[list[int]]:
    """Positions of pairs drawn from equal bands of a window, the nearest band first; an image is shown once in a band.

    Args:
        query, target, similarity: (m,) pairs; those outside the window are passed over, and of (a, b) and (b, a) one is
            taken.
        window: low <= cosine < high.
        bands: a count.
        count: pairs in all: as many from each band, the nearest ones have what is over, and what another band has too
            few of.
        seed: of the draw.
    """
    low, high = window.low, window.high
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
    taken = [min(len(drawn[b]), count // bands + (b < count % bands)) for b in range(bands)]
    for b in range(bands):
        taken[b] += min(len(drawn[b]) - taken[b], count - sum(taken))
    return [sorted(chosen[:some], key=lambda n: (-similarity[n], n)) for chosen, some in zip(drawn, taken, strict=True)]


def chart(encoder: EncoderFigures, *, on_page: bool) -> str:
    """The distributions as lines, each scaled to its own peak, and the window as a shaded band.

    Args:
        encoder: what to draw.
        on_page: with the colours of the page's stylesheet; otherwise with colours of its own.
    """
    window = encoder.window
    cosines = {name: values for name, values in encoder.cosines.items() if len(values)}
    low = min([window.low, *(float(np.quantile(values, 0.001)) for values in cosines.values())]) - 0.01
    edges = np.linspace(low, 1.005, BINS + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = []
    for name, values in cosines.items():
        counts, _ = np.histogram(values, edges)
        colour = f"var(--{CURVES[name].variable})" if on_page else CURVES[name].colour
        series.append(Series(name, colour, middles, (counts / max(counts.max(), 1)).tolist()))
    frame = Frame(
        f"{encoder.role} ({encoder.model}): window {window.low:.4f} to {window.high:.4f}",
        f"Distributions of cosine similarity, each scaled to its own peak: {', '.join(cosines)}.",
        x_label="cosine similarity",
        y_label="" if on_page else f"{encoder.role} ({encoder.model}): window {window.low:.4f} to {window.high:.4f}",
        width=900,
        height=260,
    )
    band = Band(window.low, window.high, "var(--accent)" if on_page else CURVES["nearest"].colour)
    return lines(frame, Axis(low, 1.005), Axis(0, 1, ticks=()), series, band=band)


def plots(encoders: Sequence[EncoderFigures]) -> str:
    """The charts of all encoders as one SVG file."""
    return standalone([chart(encoder, on_page=False) for encoder in encoders])


def figure_context(image: Image, caption: str) -> dict[str, str]:
    """An image as the page shows it, its caption cut to CAPTION_CHARS."""
    cut = caption if len(caption) <= CAPTION_CHARS else caption[:CAPTION_CHARS] + "..."
    return {"source": jpeg_uri(image, SIDE_PX, QUALITY), "caption": cut}


def encoder_context(encoder: EncoderFigures) -> dict[str, Any]:
    """One encoder's part of the page, as plain values."""
    window, count = encoder.window, len(encoder.bands)
    step = (window.high - window.low) / max(count, 1)
    names = BAND_NAMES if count == len(BAND_NAMES) else [f"Band {n + 1}" for n in range(count)]
    bands = [
        {
            "name": name,
            "low": window.high - (n + 1) * step,
            "high": window.high - n * step,
            "pairs": [
                {
                    "similarity": pair.similarity,
                    "query": figure_context(pair.query, pair.query_caption),
                    "target": figure_context(pair.target, pair.target_caption),
                }
                for pair in pairs
            ],
        }
        for n, (name, pairs) in enumerate(zip(names, encoder.bands, strict=True))
    ]
    return {
        "role": encoder.role,
        "model": encoder.model,
        "low": window.low,
        "high": window.high,
        "nearest_inside": encoder.nearest_inside,
        "pair_count": sum(map(len, encoder.bands)),
        "chart": chart(encoder, on_page=True),
        "bands": bands,
    }


def page(encoders: Sequence[EncoderFigures]) -> str:
    """The whole page."""
    curves = [{"name": name, "meaning": c.meaning, "variable": c.variable} for name, c in CURVES.items()]
    return html("calibration.html.j2", curves=curves, encoders=[encoder_context(e) for e in encoders])
