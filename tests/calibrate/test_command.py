"""The command: windows of stored embeddings or of a folder, printed as the trigger form's values, or written."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tasks.__main__ import main
from tasks.config import ENCODER_ROLES, load_params
from tasks.store import Store
from tests.calibrate.families import families


def test_the_command_prints_and_writes(tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    store = Store(tmp_path)
    for role in ("semantic", "pattern", "caption"):
        store.write_embeddings(role, "2026.01.04-00000.tar", "r1", [str(i) for i in range(100)], families(20, 5, 0.3))
    old = load_params(tmp_path / "params.yaml").mine.windows
    assert main(["calibrate", "--root", str(tmp_path)]) == 0
    assert load_params(tmp_path / "params.yaml").mine.windows == old
    assert main(["calibrate", "--root", str(tmp_path), "--write"]) == 0
    assert load_params(tmp_path / "params.yaml").mine.windows != old
    text = capsys.readouterr().out
    assert "pattern (tasks/sample/checkpoints/dino, r1): 100 vectors" in text
    assert main(["calibrate", "--root", str(tmp_path)]) == 0  # the same, spelt as a stage is
    assert capsys.readouterr().out.splitlines()[-1] == text.splitlines()[-1]
    assert main(["calibrate", "--root", str(tmp_path / "none")]) == 78
    assert main(["calibrate", "--root", str(tmp_path), "--low-quantile", "2"]) == 78


def images(folder: Path, count: int, captions: bool) -> Path:
    """Small images of coloured patches, and a line that is no image."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for n in range(count):
        Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8)).resize((96, 80), Image.Resampling.NEAREST).save(
            folder / f"{n}.png"
        )
    (folder / "notes.txt").write_text("taken by hand")
    if captions:
        (folder / "captions.csv").write_text(
            "path,caption\n" + "".join(f"{n}.png,nine patches number {n}\n" for n in range(count))
        )
    return folder


def test_a_folder_of_images_gives_the_values_of_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = images(tmp_path / "my images", 8, captions=True)
    assert main(["calibrate", "--source", str(folder), "--figures", str(tmp_path / "figures")]) == 0
    text = capsys.readouterr().out
    assert "9 files, 9 read, 8 images, dropped: 1 not_a_picture" in text
    values = json.loads(text.splitlines()[-1])
    assert values["profile"] == "demo" and values["sources"] == [{"name": "my-images", "path": str(folder)}]
    assert all(values[f"window_{role}"]["low"] < values[f"window_{role}"]["high"] for role in ENCODER_ROLES)
    assert "validate" not in values  # every image has a caption; without, the values would lower that floor and say so
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "my images"] and len(list(folder.iterdir())) == 10
    saved = json.loads((tmp_path / "figures" / "calibration.json").read_text())
    assert saved["semantic"]["window"] == values["window_semantic"] and set(saved) == set(ENCODER_ROLES)
    assert "near-copies" in saved["pattern"]["quantiles"] and "near-copies" not in saved["caption"]["quantiles"]
    assert (
        saved["semantic"]["quantiles"]["near-copies"]["q0.5"] > saved["semantic"]["quantiles"]["random pairs"]["q0.5"]
    )
    svg, page = ((tmp_path / "figures" / name).read_text() for name in ("calibration.svg", "pairs.html"))
    # four lines, and three of the texts
    assert ElementTree.fromstring(svg).tag.endswith("svg") and svg.count("<polyline") == 11
    assert (
        page.count("<h2>") == 3 and page.count("<h3>") == 9 and "nine patches number" in page and "<script" not in page
    )


def test_what_cannot_be_calibrated_is_refused_with_the_next_step(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    few = images(tmp_path / "few", 2, captions=True)
    for arguments, code, message in (
        (["--source", str(tmp_path / "none")], 78, "is no folder"),
        (["--source", str(few)], 65, "at least 3 are needed"),
        (["--source", str(few), "--limit", "2"], 78, "at least 3"),
        (["--source", str(few), "--profile", "tiny"], 78, "no profile 'tiny'"),
        (
            ["--source", str(few), "--profile", "small", "--write", "--root", str(tmp_path)],
            78,
            "params.yaml: profile 'small' has mine.windows of its own",
        ),
    ):
        assert main(["calibrate", *arguments]) == code, arguments
        assert message in capsys.readouterr().err
    assert (tmp_path / "params.yaml").read_text() == (project / "params.yaml").read_text()
