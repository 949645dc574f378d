"""docs/tutorial.md, word for word: its code blocks run in one shell, on generated images, in a home of their own."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tasks.store import Store
from tests.support.textured_images import draw_families

PAGE = "docs/tutorial.md"
IMAGES, PAIRS = 200, 24  # as the page says


def shell_blocks(page: str) -> list[str]:
    """The page's blocks of bash, in order."""
    return re.findall(r"^```bash\n(.*?)^```$", page, re.M | re.S)


@pytest.mark.factory
def test_the_tutorial_works_word_for_word(tmp_path: Path, project: Path):
    assert draw_families(tmp_path / "tutorial" / "images", IMAGES // 5) == IMAGES
    blocks = shell_blocks((project / PAGE).read_text())
    assert len(blocks) >= 8
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    store = Store(tmp_path / "tutorial" / "factory")
    assert store.read_table("images").num_rows == IMAGES
    assert store.read_table("pairs").num_rows == PAIRS
    assert {"over_quota"} <= set(store.read_dropped("select").column("reason").to_pylist())
    left_out = {
        row["key"] for row in store.read_dropped("caption").to_pylist() + store.read_dropped("judge").to_pylist()
    }
    triplets = store.read_table("triplets").column("pair_id").to_pylist()
    assert set(store.read_table("pairs").column("pair_id").to_pylist()) <= left_out | set(triplets)
    verdicts = (tmp_path / "tutorial" / "verdicts.html").read_text()
    assert "wrong target" in verdicts and verdicts.count("<img") > PAIRS
    assert (tmp_path / "tutorial" / "figures" / "pairs.html").stat().st_size > 100_000
