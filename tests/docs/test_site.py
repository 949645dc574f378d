"""`make docs` is clean, and every link inside the site leads to a page, an anchor or a file that is there."""

import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[2]


class Links(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attributes if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.targets.add(values["href"])
        if tag in ("link", "script", "img", "source", "iframe"):
            self.loaded |= {values[name] for name in ("href", "src") if name in values}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it; the environment is taken as installed."""
    out = tmp_path_factory.mktemp("site")
    command = ["make", "--no-print-directory", "-o", ".venv/installed", "docs", f"SITE={out}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return out


def test_every_link_inside_the_site_leads_somewhere(site: Path):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 40
    broken = []
    for page, links in pages.items():
        for link in sorted(links.targets | links.loaded):
            target, anchor = urldefrag(link)
            if urlparse(target).scheme in ("http", "https", "mailto", "data"):
                continue
            path = (page.parent / unquote(urlparse(target).path)).resolve() if target else page
            if not path.exists() or (anchor and path in pages and anchor not in pages[path].anchors):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(site: Path):
    elsewhere = {
        link
        for path in site.rglob("*.html")
        for link in Links(path.read_text(encoding="utf-8")).loaded
        if urlparse(link).scheme in ("http", "https") or link.startswith("//")
    }
    assert elsewhere == set()
    fonts = [path.name for path in site.rglob("*.css") if "@import url(http" in path.read_text(encoding="utf-8")]
    assert fonts == []
