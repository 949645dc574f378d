"""Templates: every value is escaped for the language of its template, and a name that is missing is an error."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from tasks.pages.render import (
    TEMPLATES,
    code,
    code_cell,
    escape_markdown,
    html,
    html_templates,
    markdown_templates,
    words,
)
from tests.support.markup import markdown_tokens

HOSTILE = (
    "a | b",
    "`code` and ``more``",
    "[x](javascript:alert(1))",
    "![x](http://tracker/pixel.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<http://auto.link>",
    "*bold* __init__ ~~gone~~",
    "# heading",
    "- item",
    "> quote",
    "1. one",
    "&lt; &#60;",
    "line\n\n# another line\n\n---",
    "\\*",
    "$x$",
)
HARMLESS = {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}


def plain(text: str) -> str:
    """What a renderer shows of inline Markdown, blanks folded."""
    shown = (t.content for t in markdown_tokens(f"{text}\n") if t.type in ("text", "text_special", "code_inline"))
    return " ".join("".join(shown).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_it_is_and_does_nothing(text: str):
    escaped = escape_markdown(text)
    assert {t.type for t in markdown_tokens(escaped + "\n")} <= HARMLESS
    assert plain(escaped) == " ".join(text.split())
    assert plain(f"before {escaped} after") == f"before {' '.join(text.split())} after"


@given(st.text(alphabet="ab_*`[]()<>|&;#-+1. \\~!:$\n", max_size=30))
def test_any_text_comes_through_markdown_unchanged(text: str):
    assert plain(f"x {escape_markdown(text)} y") == " ".join(f"x {text} y".split())
    assert {t.type for t in markdown_tokens(f"x {escape_markdown(text)} y\n")} <= HARMLESS


@given(st.text(alphabet="ab`|\\ <", min_size=1, max_size=20).filter(str.strip))
def test_a_code_span_holds_any_text_also_inside_a_table(text: str):
    (span,) = [t for t in markdown_tokens(code(text) + "\n") if t.type == "code_inline"]
    assert span.content.strip() == " ".join(text.split())
    rows = markdown_tokens(f"| a | b |\n| - | - |\n| {code_cell(text)} | end |\n")
    cells = [t.content for t in rows if t.type == "inline"]
    assert len(cells) == 4 and cells[3] == "end"


def test_text_that_is_marked_as_safe_and_macros_are_not_escaped_twice():
    template = markdown_templates().from_string(
        "{% macro cell(x) %}<{{ x }}>{% endmacro %}"
        "{{ cell(v) }} {{ v | code }} {{ many | map('code') | join(', ') }} {{ n }}"
    )
    assert template.render(v="a*b", many=["c|d", "e"], n=1.5) == "<a\\*b> `a*b` `c|d`, `e` 1.5"


@pytest.mark.parametrize("environment", [html_templates(), markdown_templates()])
def test_a_missing_name_is_an_error(environment):
    with pytest.raises(UndefinedError, match="'nobody' is undefined"):
        environment.from_string("{{ nobody }}").render()
    with pytest.raises(UndefinedError):
        environment.from_string("{{ row.nobody }}").render(row={})


def test_no_template_switches_escaping_off_for_a_value_from_outside():
    """`|safe` is only for what this code rendered or drew itself."""
    marked = {
        (path.name, match)
        for path in TEMPLATES.glob("*.j2")
        for match in re.findall(r"[\w.]+ \| safe", path.read_text())
    }
    assert marked == {
        ("gallery.html.j2", "encoder.chart | safe"),
        ("gallery.html.j2", "retrieval | safe"),
        ("calibration.html.j2", "encoder.chart | safe"),
    }


def test_quotes_cannot_leave_an_attribute():
    page = html("versions.html.j2", names=["\"><script>alert('1')</script>"])
    assert "<script" not in page and 'href="versions/&#34;&gt;&lt;script&gt;' in page


def test_a_name_of_the_code_as_words():
    assert words("near_duplicate") == "near duplicate"
