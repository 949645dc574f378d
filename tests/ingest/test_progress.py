"""Progress of ingest: a tqdm bar on a terminal, one line a minute in a log."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.ingest import progress
from tasks.ingest import stage as ingest
from tasks.store import Store
from tests.support.ingest import folder_params


def count_180_files(monkeypatch: pytest.MonkeyPatch) -> progress.Progress:
    """One file a second for three minutes; every third is a duplicate."""
    clock = iter(range(10_000))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    counter = progress.Progress()
    for n in range(180):
        counter.count("duplicate" if n % 3 == 0 else None)
    counter.close()
    return counter


def test_a_log_gets_one_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with caplog.at_level("INFO", logger="tasks.ingest.progress"):
        counter = count_180_files(monkeypatch)
    assert [record.getMessage() for record in caplog.records] == [
        "ingest: 60 seen = 40 kept + 20 dropped (duplicate 20), 60 a minute",
        "ingest: 120 seen = 80 kept + 40 dropped (duplicate 40), 60 a minute",
        "ingest: 180 seen = 120 kept + 60 dropped (duplicate 60), 60 a minute",
    ]
    assert capsys.readouterr().err == ""
    assert str(counter) == "ingest: 180 seen = 120 kept + 60 dropped (duplicate 60)"


def test_a_terminal_gets_a_bar_and_no_log_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level("INFO", logger="tasks.ingest.progress"):
        count_180_files(monkeypatch)
    bar = capsys.readouterr().err
    assert caplog.records == []
    assert re.search(r"\ringest: 180 files \[.*, 120 kept \+ 60 dropped \(duplicate 60\)\]\n$", bar), bar
    assert bar.count("\n") == 1


def test_a_run_on_a_terminal_ends_with_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("hello")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ingest.run(folder_params(tmp_path / "source"), Store(tmp_path / "run"))
    assert "0 kept + 1 dropped (not_a_picture 1)" in capsys.readouterr().err.splitlines()[-1]
