"""A dataset of one's own: laid out once, with what its calibration found, and nothing where that fails."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tasks.__main__ import main
from tasks.calibrate.params_file import set_values
from tasks.config import load_params, read_raw, uncalibrated_windows
from tasks.publish.git import git
from tasks.publish.open_run import Deployment, RunRequest, open_run


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "Möbel & Co"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for n in range(6):
        patches = rng.integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(patches).resize((96, 80), Image.Resampling.NEAREST).save(folder / f"{n}.png")
    return folder


@pytest.mark.slow
def test_an_empty_form_opens_a_run_on_ones_own_images(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "deployments" / "shop"
    arguments = ["new-dataset", "shop", "--source", str(photographs), "--root", str(root), "--profile", "demo"]
    assert main(arguments) == 0
    assert f"MEGAPAIRS_DATASETS=shop={root}" in capsys.readouterr().out
    params = load_params(root / "dataset" / "params.yaml")
    assert (params.open_run.dataset, params.profile) == ("shop", "demo")
    assert [(s.name, s.path) for s in params.ingest.sources] == [("shop", str(photographs))]
    assert params.validate_.images.caption_share_min == 0  # no image has a caption
    assert git(root / "origin.git", "log", "-1", "--format=%s", "main").startswith("Dataset shop")
    before = (root / "dataset" / "params.yaml").read_text()
    assert main(arguments) == 0 and "is already in" in capsys.readouterr().out, "a second call leaves it as it is"
    assert (root / "dataset" / "params.yaml").read_text() == before
    assert main(["new-dataset", "cars", "--source", str(photographs), "--root", str(root)]) == 78
    assert "holds dataset 'shop', not 'cars'" in capsys.readouterr().err

    notes = open_run(RunRequest("first", "dataset"), Deployment(root / "dataset", root / "runs")).notes
    opened = load_params(Path(notes[0]) / "params.yaml")
    assert opened.open_run.dataset == "shop" and opened.mine.windows == params.mine.windows


def test_images_that_cannot_be_calibrated_on_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "shop"
    assert main(["new-dataset", "shop", "--source", str(tmp_path / "nowhere"), "--root", str(root)]) == 78
    assert main(["new-dataset", "sh op", "--source", str(tmp_path), "--root", str(root)]) == 78
    assert "expected letters, digits" in capsys.readouterr().err and not root.exists()


def test_a_profiles_own_windows_are_replaced_where_they_are_and_are_guesses_no_more(project: Path, tmp_path: Path):
    text = (project / "tasks" / "profiles" / "small.yaml").read_text()
    changed = set_values(text, {"mine.windows": {"semantic": {"low": 0.1, "high": 0.2}}}, ("uncalibrated_windows",))
    (tmp_path / "tasks" / "profiles").mkdir(parents=True)
    (tmp_path / "tasks" / "profiles" / "small.yaml").write_text(changed)
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    assert uncalibrated_windows(read_raw(tmp_path / "params.yaml"), "small") == []
    before, after = yaml.safe_load(text), yaml.safe_load(changed)
    assert after["mine"]["windows"] == {"semantic": {"low": 0.1, "high": 0.2}}
    assert {k: v for k, v in after.items() if k != "mine"} == {
        k: v for k, v in before.items() if k not in ("mine", "uncalibrated_windows")
    }
