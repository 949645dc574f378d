"""How many things differ between two images: the estimate, what it reads of captions, what it learns from a judge."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tasks.calibrate.differences import Fitted, fit, held_out_figures, read_labels
from tasks.errors import ConfigError, DataError
from tasks.select.differences import INPUTS, Record, factors, read_model, unfit_reason
from tasks.select.words import Captions, compare, signature
from tests.support.estimates import made_up_model, write_model

ENCODERS = {"semantic": "r", "pattern": "r", "caption": "r"}


def test_captions_are_compared_word_by_word_whatever_their_case_and_punctuation():
    base = "a small red star at the top left, a large blue cross"
    same, colour, other = "A small red star at the top left - a LARGE blue cross", base.replace("red", "green"), "grey"
    rows = np.stack([signature(text) for text in (base, same, colour, other, "")])
    against = compare(np.repeat(rows[:1], len(rows), axis=0), rows)
    assert against[1].tolist() == pytest.approx([0, 1, 1], abs=2e-3)
    assert against[2, 0] == pytest.approx(np.log(3)) and 0.4 < against[2, 2] < against[2, 1] < 1
    assert against[3, 0] > 2 and abs(against[3, 1:]).max() < 0.3 and against[4, 1:].tolist() == [0, 0]
    assert (compare(rows, rows[::-1]) == compare(rows[::-1], rows)).all()


def test_an_image_without_a_caption_is_unknown_not_different(tmp_path: Path):
    captions = Captions(tmp_path / "captions", 3)
    captions.add(np.array([0, 2]), ["a red star", "a red cross"])
    found = captions.compare(np.array([0, 0, 2]), np.array([2, 1, 2]))
    assert np.isnan(found[1]).all() and not np.isnan(found[[0, 2]]).any() and found[2, 0] == 0


def test_a_pair_is_estimated_by_itself_whatever_stands_beside_it():
    model = made_up_model(ENCODERS)
    inputs = np.random.default_rng(1).uniform(0, 1, (50, len(INPUTS)))
    inputs[::7, 3:] = np.nan  # without captions
    whole = model.judge(inputs, np.ones(2))
    for start, stop in ((0, 1), (3, 20), (20, 50)):
        part = model.judge(inputs[start:stop], np.ones(2))
        assert all((a[start:stop] == b).all() for a, b in zip(whole, part, strict=True))
    assert set(whole[0].tolist()) <= {0, 1} and 0 <= whole[1].min() < whole[1].max() <= 0.9
    assert not len(model.judge(inputs[:0], np.ones(2))[0])


def test_what_the_judge_accepted_moves_the_chances_the_more_pairs_it_judged():
    few, many = (
        Record(np.array([10.0, 10]), np.array([2.0, 10])),
        Record(np.array([900.0, 900]), np.array([180.0, 900])),
    )
    assert factors(few)[1] == factors(many)[1] == 1
    assert 0.2 < factors(many)[0] < 0.3 < 0.9 < factors(few)[0] < 1
    model, inputs = made_up_model(ENCODERS), np.full((1, len(INPUTS)), 0.9)
    assert model.judge(inputs, factors(many))[1][0] < model.judge(inputs, np.ones(2))[1][0]


def test_an_estimate_is_for_the_encoders_that_it_was_fitted_to(tmp_path: Path):
    model = read_model(write_model(tmp_path / "differences.json", ENCODERS))
    windows = dict.fromkeys(ENCODERS, (0.2, 0.999))
    assert unfit_reason(model, ENCODERS, windows) is None
    assert "pattern other" in str(unfit_reason(model, {**ENCODERS, "pattern": "other"}, windows))
    assert unfit_reason(model, {"semantic": "r"}, windows) is not None
    assert "mine.windows of caption" in str(unfit_reason(model, ENCODERS, {**windows, "caption": (0.3, 0.999)}))
    (tmp_path / "broken.json").write_text(json.dumps({**model.to_json(), "mean": [1]}))
    for name in ("broken.json", "missing.json"):
        with pytest.raises(ConfigError, match=r"calibrate --differences"):
            read_model(tmp_path / name)


def test_a_fit_to_labelled_pairs_tells_one_difference_from_many(tmp_path: Path):
    """Cosines fall and words differ with the number of differences, noisily; some captions are missing."""
    rng = np.random.default_rng(0)
    classes = rng.choice(4, 900, p=[0.2, 0.2, 0.1, 0.5])
    inputs = rng.normal(0, 0.06, (900, len(INPUTS))) + np.array([0.95, 0.9, 0.8, 0.4])[classes, None]
    inputs[rng.random(900) < 0.1, 3:] = np.nan
    accepted = np.where(classes == 0, rng.random(900) < 0.8, np.nan)
    fitted = Fitted(ENCODERS, dict.fromkeys(ENCODERS, (0.2, 0.999)))
    model = fit(inputs[:600], classes[:600], accepted[:600], 3, fitted)
    figures = held_out_figures(model, inputs[600:], classes[600:])
    assert figures["log_loss"] < 0.5 and figures["from_0.5"]["shares"][3] < 0.05 and figures["number_right"] > 0.7
    assert model.accepted.tolist() == [pytest.approx(0.8, abs=0.1), 1, 1, 0]
    again = fit(inputs[:600], classes[:600], accepted[:600], 3, fitted)
    assert again.to_json() == model.to_json()
    with pytest.raises(DataError, match="no labelled pair"):
        fit(inputs, np.zeros(900, np.int64), accepted, 3, fitted)


def test_labels_are_read_with_more_than_can_be_said_as_one_kind(tmp_path: Path):
    path = tmp_path / "pairs.csv"
    rows = [("query", "target", "differences"), ("a", "b", "1"), ("a", "c", "more"), ("b", "c", "7")]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert read_labels(path, 3) == {("a", "b"): 1, ("a", "c"): None, ("b", "c"): None}
    path.write_text("query,target,differences\na,b,0\n")
    with pytest.raises(DataError, match="differences"):
        read_labels(path, 3)
