"""What the demo runs on: only a folder that a demo made is emptied."""

from pathlib import Path

import pytest

from tasks.demo.setup import DemoFailed, empty_root


def test_only_a_demos_own_folder_is_emptied(tmp_path: Path):
    empty_root(tmp_path / "demo")
    (tmp_path / "demo" / "old").write_text("x")
    empty_root(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DemoFailed, match="not made by a demo"):
        empty_root(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()
