"""Great Expectations' Data Docs, readable without a network: GX's pages take all their looks from public CDNs.

A small stylesheet for the classes that they use goes first into each page's head, so that Bootstrap, where it can be
had, stands behind it and wins.
The index builds its table with a script from there too: a plain list of the checks goes above it.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

STYLE = """<style id="without-network">
body{margin:0 0 48px;color:#1c2430;font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;line-height:1.45}a{color:#3451d1}
.navbar-brand img{max-height:32px}ol.breadcrumb{display:flex;gap:14px;padding:0;margin:0;list-style:none;font-size:14px}
body>nav{padding:12px 28px;border-bottom:1px solid #dcd9d0;background:#fafaf8}body>nav nav{display:flex;gap:20px;align-items:center}
.container-fluid{padding:20px 28px}.row{display:flex;flex-wrap:wrap;gap:24px}
.col-md-2,.col-lg-2{width:230px;flex:none}.col-md-10,.col-lg-10{flex:1;min-width:0}.col-12{width:100%}
.card{border:1px solid #dcd9d0;border-radius:8px;margin-bottom:14px;overflow:hidden}
.card-header{padding:8px 12px;background:#f5f4f0}.card-body{padding:10px 12px}
ul.nav{list-style:none;padding:0;margin:0;font-size:13px}.nav-link{display:block;padding:3px 4px;text-decoration:none}
table{border-collapse:collapse;margin:6px 0 12px;font-size:14px}
th,td{padding:7px 12px;border-bottom:1px solid #dcd9d0;text-align:left;vertical-align:top;overflow-wrap:anywhere}
h4,h5,h6{margin:18px 0 6px;font-size:16px}.lead{color:#6b7280;font-size:14px}.badge{padding:1px 7px;border-radius:9px;background:#eef}
.text-success{color:#12805c}.text-danger{color:#b3261e}
</style>"""


def with_style(page: str) -> str:
    """The page with `STYLE` at the head's start; unchanged where it stands there already."""
    return page if STYLE in page else page.replace("<head>", "<head>" + STYLE, 1)


def with_list(index: str, pages: Sequence[str]) -> str:
    """The index page with links to the pages of checks (paths from its folder:
    validations/<suite>/<run>/<time>/<page>), the newest of a suite first.
    """
    ordered = sorted(pages, key=lambda p: p.split("/")[-2], reverse=True)
    ordered.sort(key=lambda p: p.split("/")[1])
    rows = "".join(
        f'<li><a href="{html.escape(p)}">{html.escape(" · ".join((p.split("/")[1].replace("_", " "), p.split("/")[-2])))}</a></li>'
        for p in ordered
    )
    return index.replace(
        "<body>", f'<body><div class="container-fluid" id="checks"><b>Checks</b><ul>{rows}</ul></div>', 1
    )


def make_readable(folder: Path) -> None:
    """Every page below the folder `with_style`, its index `with_list`; done once, whatever the number of calls."""
    for path in folder.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        if STYLE in page:
            continue
        if path == folder / "index.html":
            page = with_list(page, [p.relative_to(folder).as_posix() for p in folder.glob("validations/*/*/*/*.html")])
        path.write_text(with_style(page), encoding="utf-8")
