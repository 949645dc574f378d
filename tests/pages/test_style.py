"""The stylesheet: text can be read on its background, on light and on dark screens."""

import re

import pytest

from tasks.pages.render import TEMPLATES, html
from tests.support.markup import assert_harmless

STYLE = (TEMPLATES / "style.css").read_text()
TEXTS = (
    "text",
    "muted",
    "accent",
    "good",
    "bad",
    "semantic",
    "pattern",
    "caption",
    "random",
    "nearest",
    "tenth",
    "copies",
)
GROUNDS = ("background", "surface", "tint")


def colours(scheme: str) -> dict[str, str]:
    """Variable -> hex colour, of 'light' or 'dark'."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light if scheme == "light" else dark))


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_colour_has_enough_contrast_on_every_ground(scheme: str):
    named = colours(scheme)
    for text in TEXTS:
        for ground in GROUNDS:
            light, dark = sorted((luminance(named[text]), luminance(named[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, text, ground)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_buttons_fields_and_the_focus_can_be_seen(scheme: str):
    named = colours(scheme)

    def contrast(one: str, other: str) -> float:
        light, dark = sorted((luminance(named[one]), luminance(named[other])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    assert contrast("surface", "accent") >= 4.5, "a button's text"
    for ground in GROUNDS:  # WCAG 1.4.11: borders of fields, the outline of the focus, a marked target
        assert min(contrast(line, ground) for line in ("muted", "accent", "good")) >= 3, (scheme, ground)
    assert "outline: none" not in STYLE and "outline: 0" not in STYLE


def test_both_schemes_name_the_same_colours_and_no_rule_uses_another():
    assert set(colours("light")) == set(colours("dark"))
    used = {name for path in TEMPLATES.iterdir() for name in re.findall(r"var\(--([\w-]+)\)", path.read_text())}
    assert used <= {*colours("light"), "shadow"}


def test_every_class_that_a_page_uses_has_a_rule():
    classes = {
        name
        for path in TEMPLATES.glob("*.html.j2")
        if "data_docs" not in path.name
        for value in re.findall(r'class="([^"{]*)', path.read_text())
        for name in value.split()
    }
    assert {name for name in classes if f".{name}" not in STYLE} == set()


@pytest.mark.parametrize("names", [[], ["2026.11.28"]])
def test_a_page_is_one_file_with_the_stylesheet_inside(names: list[str]):
    page = html("versions.html.j2", names=names)
    assert page.startswith("<!doctype html>") and STYLE.strip() in page
    text = assert_harmless(page, links=True).text
    assert ("2026.11.28" in text) == bool(names) and ("No version is published yet" in text) != bool(names)
