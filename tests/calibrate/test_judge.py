"""Thresholds of the judge by procedure: from labelled questions, on query images that gave no curve."""

import random
from pathlib import Path

import pytest

from tasks.calibrate.judge import Answers, calibrate_judge, learn, learn_negatives
from tasks.calibrate.sample_labels import OUT
from tasks.config import load_params
from tasks.errors import DataError


def drawn(count: int, spread: float, fits_share: float = 0.5, seed: int = 0) -> Answers:
    """A judge whose P(yes) is 0.8 for what fits and 0.4 for the rest, give or take `spread`."""
    rng = random.Random(seed)
    fits = [rng.random() < fits_share for _ in range(count)]
    yes = [min(1.0, max(0.0, rng.gauss(0.8 if fit else 0.4, spread))) for fit in fits]
    return Answers(yes, fits, ["any"] * count, [n % 2 for n in range(count)])


def test_a_better_judge_loses_fewer_right_texts_at_the_same_share_of_true_ones():
    sharp, dull = (learn({"target": drawn(800, spread)}, 0.97, 0.005) for spread in (0.1, 0.2))
    assert sharp.true_share >= 0.97 <= dull.true_share and sharp.true_yes > 0.9 > dull.true_yes
    assert sharp.negative_threshold is None


def test_negatives_that_fit_are_few_among_those_that_stay():
    learnt = learn({"target": drawn(400, 0.1), "negative": drawn(2000, 0.1, 0.05, seed=1)}, 0.97, 0.005)
    assert learnt.negative_threshold is not None and 0.4 < learnt.negative_threshold < 0.8
    assert learnt.also_right is not None and learnt.also_right <= 0.005
    assert learnt.negatives_removed is not None and learnt.negatives_removed < 0.15


def test_a_negative_goes_where_one_of_its_texts_reaches_the_threshold():
    """Of 100 negatives with two texts each, one fits the text that the judge misses, and is found by the other."""
    shown = [("query", str(n)) for n in range(100) for _ in range(2)]
    yes, fits = [0.1, 0.2] * 99 + [0.15, 0.9], [False] * 198 + [True, True]
    together = Answers(yes, fits, ["any"] * 200, [0] * 200, shown)
    assert learn_negatives(together, 0.001) == (0.9, 0.0, pytest.approx(0.01))
    apart = Answers(yes, fits, ["any"] * 200, [0] * 200)
    assert learn_negatives(apart, 0.001)[0] == pytest.approx(0.15, abs=2e-4)  # as if the missed text stood alone


def test_what_the_questions_cannot_give_is_said():
    with pytest.raises(DataError, match="label more"):
        learn({"negative": drawn(50, 0.1)}, 0.97, 0.005)
    with pytest.raises(DataError, match="no threshold"):
        learn({"target": drawn(400, 5.0, fits_share=0.2)}, 0.97, 0.005)


@pytest.mark.slow
def test_the_demos_calibration_and_threshold_are_what_the_command_learns(tmp_path: Path):
    params = load_params("params.yaml", "demo")
    learnt = calibrate_judge(params, [OUT], tmp_path)
    assert learnt.threshold == params.judge.threshold
    assert learnt.calibration.to_json() == Path(str(params.judge.calibration)).read_text()
    assert learnt.true_share >= 0.97 and learnt.true_yes >= 0.85
