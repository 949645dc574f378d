"""Render the templates in tasks/pages/templates: HTML pages and mails, Markdown cards.

    html("versions.html.j2", names=["2026.11.16"])
    markdown("dataset_card.md.j2", version=..., header=...)

Python computes the context, templates hold all the words and marks. Every value is escaped by default for the language
of its template, so that text from strangers (captions, source names, error messages) stays text; a template marks what
it means as markup with `|safe` or with one of the filters below. A name that a template uses and the context lacks is
an error (StrictUndefined), never an empty place.

| language | a value is | filters |
|---|---|---|
| HTML (`*.html.j2`) | escaped with quotes: fit for elements and quoted attributes | `words` |
| Markdown (`*.md.j2`) | escaped against markup, links, table cells and raw HTML; line breaks become blanks | `words`,
`code`, `code_cell`, `yaml` |

All pages share one stylesheet, templates/style.css. It is inlined: a page is a single file that opens from disk and
loads nothing. Mails carry inline styles in the same colours (templates/mail.html.j2), because mail programs drop
stylesheets.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
# What could begin Markdown or raw HTML. `]` only before what would make it a link, `_` only where it is no part of a
# word, `&` only before an entity; `-`, `+`, `#`, `>` and the point of `1.` only at the start.
MARKS = re.compile(
    r"[\\`*<|~$]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|^>|^[-+#](?=[\s#]|$)|(?<=^\d)[.)](?=\s|$)"
)
ENTITIES = {"<": "&lt;", "&": "&amp;"}


def words(name: str) -> str:
    """A name of the code as words: 'near_duplicate' becomes 'near duplicate'."""
    return name.replace("_", " ")


def escape_markdown(value: Any) -> Markup:
    """A value as inline Markdown that shows it and does nothing else; text marked as safe passes unchanged."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split())
    return Markup(MARKS.sub(lambda m: ENTITIES.get(m[0], "\\" + m[0]), text))


def code(value: Any) -> Markup:
    """A value as a Markdown code span, with more backticks around it than inside it."""
    text = " ".join(str(value).split())
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if not text or text[0] == "`" or text[-1] == "`" else ""
    return Markup(f"{fence}{space}{text}{space}{fence}")


def code_cell(value: Any) -> Markup:
    """A code span inside a table's cell, where a pipe must be escaped even there (GitHub's Markdown)."""
    return Markup(code(value).replace("|", "\\|"))


def python_text(value: Any) -> Markup:
    """A text as a literal of Python, in a block of code."""
    return Markup(json.dumps(str(value)))


def to_yaml(value: Any) -> Markup:
    """A mapping as YAML in its own order, for a card's header."""
    return Markup(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    environment.filters["words"] = words
    return environment


@functools.cache
def html_templates() -> Environment:
    """The environment of `*.html.j2`."""
    return _environment()


@functools.cache
def markdown_templates() -> Environment:
    """The environment of `*.md.j2`: `finalize` escapes for Markdown before Jinja's own HTML escape would."""
    environment = _environment(finalize=escape_markdown)
    environment.filters.update(code=code, code_cell=code_cell, yaml=to_yaml, python_text=python_text)
    return environment


def html(template: str, **context: Any) -> str:
    """A page or a part of one; every value in it is HTML-escaped."""
    return html_templates().get_template(template).render(context)


def markdown(template: str, **context: Any) -> str:
    """A Markdown document; every value in it is Markdown-escaped."""
    return markdown_templates().get_template(template).render(context)
