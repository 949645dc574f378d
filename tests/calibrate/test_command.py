"""Windows come from the corpus' own similarities, and land in params.yaml without touching anything else."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks import __main__
from tasks.__main__ import main
from tasks.calibrate import command as calibrate
from tasks.config import ENCODER_ROLES, load_params
from tasks.errors import ConfigError, DataError
from tasks.store import Store


def families(count: int, members: int, spread: float) -> np.ndarray:
    """Unit rows in families, far from each other, (count * members, 32) float16."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(count, 32)), members, axis=0) + spread * rng.normal(size=(count * members, 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def test_the_window_holds_families_and_leaves_strangers_out():
    vectors = families(60, 5, 0.3).astype(np.float64)
    low, high = calibrate.propose(
        calibrate.distribution(vectors.astype(np.float16)), low_quantile=0.98, high_quantile=0.995
    )
    similar = vectors @ vectors.T
    same = np.equal.outer(np.arange(300) // 5, np.arange(300) // 5) & ~np.eye(300, dtype=bool)
    inside = (similar >= low) & (similar < high)
    assert inside[same].mean() > 0.9
    assert inside[~same & ~np.eye(300, dtype=bool)].mean() < 0.02


def test_low_lies_below_high_whatever_the_corpus():
    for vectors in (families(1, 9, 0.001), families(300, 1, 0), np.repeat(families(1, 1, 0), 5, axis=0)):
        low, high = calibrate.propose(calibrate.distribution(vectors), low_quantile=0.99, high_quantile=0.995)
        assert low < high <= 1
    with pytest.raises(DataError, match="at least 3"):
        calibrate.distribution(families(2, 1, 0))


def test_the_rest_of_the_file_stays_as_it_was(project: Path):
    text = (project / "params.yaml").read_text()
    windows = {"semantic": (0.1, 0.2), "caption": (0.3, 0.4)}
    changed = calibrate.with_windows(text, windows)
    before, after = yaml.safe_load(text), yaml.safe_load(changed)
    assert after["mine"].pop("windows") == {"semantic": {"low": 0.1, "high": 0.2}, "caption": {"low": 0.3, "high": 0.4}}
    before["mine"].pop("windows")
    assert after == before
    assert [line for line in text.split("\n") if "#" in line and "windows" not in line][:3] == [
        line for line in changed.split("\n") if "#" in line
    ][:3]
    assert calibrate.with_windows(changed, windows) == changed
    block_style = yaml.safe_dump(yaml.safe_load(text), sort_keys=False)
    assert yaml.safe_load(calibrate.with_windows(block_style, windows))["mine"]["windows"]["caption"] == {
        "low": 0.3,
        "high": 0.4,
    }
    with pytest.raises(ConfigError, match="no block 'windows:'"):
        calibrate.with_windows("select:\n  a: 1\n", windows)


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
    assert __main__.main(["calibrate", "--root", str(tmp_path)]) == 0  # the same, spelt as a stage is
    assert capsys.readouterr().out.splitlines()[-1] == text.splitlines()[-1]
    assert __main__.main(["calibrate", "--root", str(tmp_path / "none")]) == 78
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
    assert "9 files, 9 looked at, 8 images, dropped: 1 not_a_picture" in text
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


def test_a_folder_without_captions_says_what_the_gate_would_say(project: Path, capsys: pytest.CaptureFixture[str]):
    params = load_params(project / "params.yaml")
    assert calibrate.source_values(params, {"caption_share": 0.0})["validate"] == {"images": {"caption_share_min": 0}}
    assert "0% of the images have one, the images gate wants 50%" in capsys.readouterr().out


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
            "has mine.windows of its own",
        ),
    ):
        assert main(["calibrate", *arguments]) == code, arguments
        assert message in capsys.readouterr().err
    assert (tmp_path / "params.yaml").read_text() == (project / "params.yaml").read_text()


@given(st.integers(0, 400), st.integers(3, 300), st.integers(1, 60))
def test_a_part_of_a_folder_is_whole_runs_of_neighbours_from_end_to_end(count: int, limit: int, run: int):
    taken = calibrate.spread(list(range(count)), limit, run)
    assert len(taken) <= limit and taken == sorted(set(taken))
    if count <= limit:
        assert taken == list(range(count))
        return
    run = min(run, limit)
    assert len(taken) == limit // run * run and taken[0] == 0
    assert all(
        taken[start : start + run] == list(range(taken[start], taken[start] + run))
        for start in range(0, len(taken), run)
    )
    assert len(taken) == run or taken[-1] == count - 1
