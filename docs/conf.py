"""Sphinx configuration of the documentation site; `make docs` builds it (docs/decisions/0062)."""

import tomllib
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent

project = "MegaPairs factory"
author = "the MegaPairs factory's contributors"
project_copyright = author
release = version = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser"]
highlight_language = "none"  # of a code block that names no language
source_suffix = {".md": "markdown"}
exclude_patterns = ["_static"]
myst_heading_anchors = 3  # links to headings, as on GitHub, are checked
myst_enable_extensions = ["colon_fence", "deflist"]

html_theme = "furo"
html_title = f"MegaPairs factory {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"font-stack": "system-ui, sans-serif", "color-brand-primary": "#0f5f73"},
    "dark_css_variables": {"color-brand-primary": "#6cc7dc", "color-brand-content": "#6cc7dc"},
}
html_show_sourcelink = False
html_copy_source = False
