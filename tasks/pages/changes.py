"""Show what changed between two versions: a page with thumbnails, and a section of CHANGELOG-DATA.md.

Pure text from `tasks.publish.changes.Changes`, which is handed over as plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.pages.render import html, markdown

SHOWN_FIGURES = 30  # of a section of CHANGELOG-DATA.md, those that changed most; the page has all
TITLE = "# Changes of the data\n\nThe newest version first; `python -m tasks diff A B` compares any two.\n\n"


def text_of(value: Any) -> str:
    """A value of a parameter or a name of a model, short."""
    if value is None or value == []:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))[:200]
    return str(value)[:200]


def change_rows(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tables that page and section share, as rows of cells.

    Args:
        changes: fields of `tasks.publish.changes.Changes` as plain mappings and lists.
    """
    tables = changes["tables"]
    return {
        "before": changes["before"],
        "after": changes["after"],
        "reasons": [(name, r, n) for name, table in tables.items() for r, n in table["reasons"].items()],
        "drift": [line for line in changes["drift"] if line[2] is not None or line[3] is not None],
        "drops": changes["drops"],
        "models": [(name, text_of(old), text_of(new)) for name, old, new in changes["models"]],
        "params": [(name, text_of(old), text_of(new)) for name, old, new in changes["params"]],
    }


def changes_page(changes: Mapping[str, Any], images: Mapping[str, str], dataset: str) -> str:
    """The page.

    Args:
        changes: as of `change_rows`.
        images: id -> data: URI of every image that is shown; others are said to be withdrawn.
        dataset: the dataset's name.
    """
    examples = []
    for kind, rows in changes["examples"].items():
        cards = [example_card(row) for row in rows]
        examples.append({"name": kind, "cards": cards})
    captions = [(image_id[:12], *texts) for image_id, texts in list(changes["recaptioned"].items())[:20]]
    return html(
        "changes.html.j2",
        dataset=dataset,
        tables=[
            {"name": name, "added": len(t["added"]), "withdrawn": len(t["withdrawn"])}
            for name, t in changes["tables"].items()
        ],
        recaptioned=changes["recaptioned"],
        captions=captions,
        figures=changes["figures"],
        images=images,
        examples=examples,
        **change_rows(changes),
    )


def example_card(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows of a triplet or an image."""
    if "triplet_id" in row:
        ends = {"query": row["query_image_id"] or "", "target": row["target_image_id"] or ""}
        return {"id": row["triplet_id"], **ends, "texts": row["instructions"]}
    return {"id": row["image_id"], "image": row["image_id"], "caption": row["caption"] or "no caption"}


def section(changes: Mapping[str, Any]) -> str:
    """A section of CHANGELOG-DATA.md, with the figures that changed most."""
    rows = change_rows(changes)
    for name in ("drift", "drops"):
        rows[name] = [tuple(map(cell, line)) for line in rows[name]]
    moved = [(name, a, b) for name, a, b in changes["figures"] if a is not None and b is not None and a != b]
    moved.sort(key=lambda line: (-relative(line[1], line[2]), line[0]))
    rows["models"] = [*rows["models"], *rows.pop("params")]
    figures = [tuple(map(cell, line)) for line in sorted(moved[:SHOWN_FIGURES])]
    return markdown("changes.md.j2", summary=summary(changes), figures=figures, **rows)


def relative(a: float, b: float) -> float:
    """How far two numbers are apart, of the larger one."""
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


def cell(value: Any) -> Any:
    """A number with four digits, nothing for None; texts as they are."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value


def summary(changes: Mapping[str, Any]) -> str:
    """The counts as a sentence."""
    parts = [
        f"{len(t['added']):,} {name} added, {len(t['withdrawn']):,} withdrawn" for name, t in changes["tables"].items()
    ]
    return "; ".join([*parts, f"{len(changes['recaptioned']):,} images have another caption"]) + "."


def with_section(earlier: str, new: str, name: str) -> str:
    """CHANGELOG-DATA.md with a new section on top; one of the same version, from an earlier try, is replaced.

    Args:
        earlier: the file so far; '' for none.
        new: of `section`.
        name: of the version that it is about.
    """
    parts = ("\n" + earlier.removeprefix(TITLE)).split("\n## ")[1:]
    kept = [f"## {part}".strip() for part in parts if part.split("\n", 1)[0].strip() != name]
    return TITLE + "\n\n".join([new.strip(), *kept]) + "\n"
