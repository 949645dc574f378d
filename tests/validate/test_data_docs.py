"""Data Docs can be read where no CDN can be reached."""

from pathlib import Path

from tasks.validate.data_docs import make_readable, style, with_checks


def test_pages_get_a_style_and_the_index_a_list_once(tmp_path: Path):
    checks = [
        f"validations/{suite}/__none__/{time}/run-{suite}.html"
        for suite, time in (("images_rows", "1"), ("pairs_rows", "2"), ("images_rows", "3"))
    ]
    for name in ("index.html", *checks):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("<html><head><link rel=stylesheet></head><body>GX</body></html>")
    make_readable(tmp_path)
    index = (tmp_path / "index.html").read_text()
    assert [index.index(f'href="{name}"') for name in (checks[2], checks[0], checks[1])] == sorted(
        index.index(f'href="{name}"') for name in checks
    )
    assert all(
        (tmp_path / name).read_text().startswith(f"<html><head>{style()}<link") for name in ("index.html", *checks)
    ), "before GX's own, which wins"
    make_readable(tmp_path)
    assert (tmp_path / "index.html").read_text() == index


def test_a_suites_name_is_text_and_its_time_is_readable():
    page = with_checks("<body></body>", ["validations/<b>_rows/__none__/20261128T214001.593108Z/run.html"])
    assert "&lt;b&gt; rows · 2026-11-28 21:40 UTC" in page and "<b>" not in page
