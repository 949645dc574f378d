"""The limit from which two images are one content in two shots: what it is chosen by, its figures, its labels."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.__main__ import main
from tasks.calibrate.folder import embed_folder, params_for_folder
from tasks.calibrate.same_content import (
    Proposal,
    calibrate_same_content,
    held_out_share,
    lowest_limit,
    nearest_others,
    read_labelled,
)
from tasks.calibrate.shots import other_shots
from tasks.config import load_params
from tasks.errors import DataError
from tasks.store import Store
from tests.calibrate.families import families
from tests.support.parameters import raw_params


@given(
    st.lists(st.sampled_from([0.1, 0.9, 0.97, 0.3000001]) | st.floats(-1, 1), min_size=2, max_size=60),
    st.floats(0, 0.99),
)
def test_the_limit_is_the_lowest_that_keeps_the_share(cosines: list[float], share: float):
    negatives = np.array(cosines)
    limit = lowest_limit(negatives, share)
    allowed = int(share * len(negatives) + 1e-9)
    assert (negatives >= limit).sum() <= allowed < (negatives >= limit - 1.01e-4).sum()
    assert 0 <= held_out_share(negatives, share) <= 1


def test_a_share_on_the_images_that_a_limit_was_chosen_by_says_less_than_one_on_others():
    """One half is nearer than the other: chosen by both together the share holds, held out it does not."""
    negatives = np.tile([0.9, 0.5], 50)
    assert not (negatives >= lowest_limit(negatives, 0)).any()
    assert held_out_share(negatives, 0) == 0.5


def test_pairs_labelled_the_same_are_no_negatives():
    vectors = families(6, 2, 0.05)
    ids = [f"{n:02d}" for n in range(12)]
    twins = {frozenset((ids[2 * n], ids[2 * n + 1])) for n in range(6)}
    assert nearest_others(ids, vectors, set(), 0).min() > 0.95
    assert nearest_others(ids, vectors, twins, 0).max() < 0.9
    some = nearest_others(ids, vectors, {frozenset((ids[0], ids[1]))}, 0)
    assert (some[:2] < 0.9).all() and (some[2:] > 0.95).all()


def test_other_shots_are_other_pixels_of_the_same_image():
    pixels = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8)
    image = Image.fromarray(pixels)
    one, two, three = (other_shots(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert list(one) == ["recoded", "cropped", "moved", "relit"]
    assert all(one[kind].tobytes() == two[kind].tobytes() for kind in one), "the same seed, the same shots"
    assert one["moved"].tobytes() != three["moved"].tobytes()
    assert (one["recoded"].size, one["cropped"].size, one["moved"].size) == ((30, 20), (45, 30), (60, 40))
    assert all(shot.mode == "RGB" and shot.tobytes() != image.tobytes() for shot in one.values())


def test_labelled_pairs_count_more_than_made_ones_and_no_cosine_reaches_a_limit_above_one():
    figures = {"role": "semantic", "negatives": 10, "false_share": 0.1, "pairs": (3, 40), "medians": {"moved": 0.8}}
    labelled = Proposal(limit=0.9, found={"moved": (9, 9), "labelled": (1, 4)}, **figures)
    assert labelled.found_share == 0.25 and not labelled.is_usable
    assert Proposal(limit=0.9, found={"moved": (5, 9)}, **figures).is_usable
    assert "moved 9 of 9, labelled 1 of 4" in labelled.lines()[1] and "3 of 40 selected pairs" in labelled.lines()[2]
    assert not Proposal(limit=1.0001, found={"moved": (9, 9)}, **figures).is_usable


@pytest.mark.parametrize("text", ["query,target\na,b\n", "query,target,same\na,b,perhaps\n", "query,target,same\na\n"])
def test_labels_that_cannot_be_read_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(DataError, match="columns query, target, same"):
        read_labelled(path)


def drawn(folder: Path) -> Path:
    """Eight small images of coloured patches."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for n in range(8):
        patches = rng.integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(patches).resize((96, 80), Image.Resampling.NEAREST).save(folder / f"{n}.png")
    return folder


def test_a_finished_run_says_how_many_of_its_pairs_lie_above_and_a_useless_limit_is_not_proposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, store, labels = drawn(tmp_path / "images"), Store(tmp_path / "run"), tmp_path / "pairs.csv"
    params = params_for_folder(raw_params("demo"), None, folder)
    embed_folder(params, store, 8, images_only=True)
    assert not (store.root / "data" / "embeddings" / "caption").exists(), "no caption was written or embedded"
    names = [("a", 0.99999), ("b", 0.1), ("c", None)]
    store.write(
        store.table_path("pairs", "2026.01.04"), [{"pair_id": i, "similarity_semantic": s} for i, s in names], "pairs"
    )
    labels.write_text("query,target,same\n0.png,1.png,yes\n")  # which no encoder can see
    values = calibrate_same_content(params, store, read_labelled(labels), 0)
    text = capsys.readouterr().out
    assert values == {} and "leave select.same_content_min empty" in text
    assert "semantic: 1 of 2 selected pairs" in text and "pattern: 0 of 0 selected pairs" in text
    assert "labelled 0 of 1" in text


def test_the_command_proposes_a_limit_for_a_folder_and_writes_it(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "params.yaml").write_text((project / "params.yaml").read_text())
    folder = drawn(tmp_path / "images")
    labels = tmp_path / "pairs.csv"
    labels.write_text("query,target,same\n0.png,1.png,no\n2.png,gone.png,yes\n")
    command = ["calibrate", "--source", str(folder), "--root", str(tmp_path), "--same-content", str(labels)]
    assert main([*command, "--false-share", "0", "--write"]) == 0
    text = capsys.readouterr().out
    assert "labelled pairs: 1 of 2 have both images stored" in text and "8 moved; ingest takes" in text
    values = json.loads(text.splitlines()[-1])
    assert load_params(tmp_path / "params.yaml").select.same_content_min == values["select"]["same_content_min"]
    assert main([*command, "--false-share", "1"]) == 78 and "expected 0 to below 1" in capsys.readouterr().err
