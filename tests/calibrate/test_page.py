"""The calibration page: pairs from every band of a window, every text escaped, charts for a page and for a file."""

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.calibrate.page import EncoderFigures, PairImages, band_pairs, page, plots
from tasks.config import Window

WINDOW = Window(low=0.5, high=0.9)
EVIL = "<script>alert('1')</script>"


@given(st.integers(0, 999), st.integers(0, 200), st.integers(1, 30), st.integers(1, 4))
def test_the_pages_pairs_come_from_every_band(seed: int, m: int, count: int, bands: int):
    rng = np.random.default_rng(seed)
    query, target, similarity = rng.integers(0, 40, m), 100 + rng.integers(0, 40, m), rng.uniform(0.4, 1.0, m)
    found = band_pairs(query, target, similarity, WINDOW, bands=bands, count=count, seed=seed)
    step = 0.4 / bands
    assert len(found) == bands and sum(map(len, found)) <= count
    for n, band in enumerate(found):
        assert all(
            0.9 - (n + 1) * step - 1e-9 <= similarity[k] <= 0.9 - n * step + 1e-9 and 0.5 <= similarity[k] < 0.9
            for k in band
        )
        assert len({query[k] for k in band}) == len(band) and list(similarity[band]) == sorted(
            similarity[band], reverse=True
        )
    assert found == band_pairs(query, target, similarity, WINDOW, bands=bands, count=count, seed=seed)


def test_the_page_shows_twenty_pairs_even_where_a_band_has_few():
    query, target = np.arange(60), np.arange(60) + 100
    for similarity, wanted in (
        (np.linspace(0.501, 0.899, 60), [7, 7, 6]),
        (np.r_[np.full(2, 0.89), np.full(30, 0.7), np.full(28, 0.51)], [2, 12, 6]),
    ):
        found = band_pairs(query, target, similarity, WINDOW)
        assert [len(band) for band in found] == wanted and sum(wanted) == 20


def encoder(**changes: Any) -> EncoderFigures:
    """Figures of one encoder: two distributions, one pair in the middle of three bands."""
    rng = np.random.default_rng(0)
    white = Image.new("RGB", (8, 8), "white")
    figures = EncoderFigures(
        "semantic",
        "model <b>, revision",
        WINDOW,
        {"random pairs": rng.normal(0.2, 0.1, 500), "nearest": rng.normal(0.7, 0.1, 500), "near-copies": np.zeros(0)},
        0.5,
        [[], [PairImages(0.7, white, white, EVIL, "a dog " * 60)], []],
    )
    return replace(figures, **changes)


def test_a_caption_is_text_on_the_page_and_a_long_one_is_cut():
    text = page([encoder()])
    assert "<script" not in text and "&lt;script&gt;" in text and "model &lt;b&gt;" in text
    assert "a dog a" in text and "..." in text and "a dog " * 40 not in text
    assert text.count("<img") == 2 and text.count("No pair of the sample lies here.") == 2
    assert "50% of the images" in text and "Below are 1 of the pairs" in text


def test_a_distribution_without_values_is_left_out_and_a_file_needs_no_stylesheet():
    assert page([encoder()]).count("<polyline") == 2
    drawn = plots([encoder(), encoder(role="pattern")])
    root = ElementTree.fromstring(drawn)
    assert len(list(root)) == 3 and drawn.count("<polyline") == 4, "a white ground and two charts"
    assert "var(--" not in drawn and "var(--nearest)" in page([encoder()])
