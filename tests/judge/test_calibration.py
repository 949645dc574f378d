"""Calibration of a judge: what P(yes) is worth by kind of change, and thresholds learnt from known answers."""

import random
from pathlib import Path

import pytest

from tasks.errors import ConfigError
from tasks.judge.calibration import fit_calibration, fit_curve, least_threshold, read_calibration
from tasks.prompts.kinds import ANY, kind_of


def answers(kind: str, right_yes: float, count: int = 200) -> list[tuple[float, bool, str]]:
    """Questions of a kind, half of them fitting: P(yes) near `right_yes` where they do, 0.2 below it where not."""
    rng = random.Random(kind)
    rows = [(n % 2 == 0, rng.gauss(0, 0.05)) for n in range(count)]
    return [(min(1.0, max(0.0, right_yes - 0.2 * (not fits) + noise)), fits, kind) for fits, noise in rows]


def test_one_threshold_means_the_same_for_kinds_of_which_the_judge_is_more_and_less_sure():
    yes, fits, kinds = zip(*answers("colour", 0.95), *answers("shape", 0.6), strict=True)
    calibration = fit_calibration(yes, fits, kinds)
    assert calibration.probability(0.6, "shape") > 0.9 > 0.1 > calibration.probability(0.6, "colour")
    probabilities = [calibration.probability(p, k) for p, k in zip(yes, kinds, strict=True)]
    threshold = least_threshold(probabilities, fits, 0.97)
    assert threshold is not None
    for kind in ("colour", "shape"):
        accepted = [f for p, f, k in zip(probabilities, fits, kinds, strict=True) if k == kind and p >= threshold]
        assert len(accepted) > 85 and sum(accepted) / len(accepted) > 0.9


def test_a_rare_kind_takes_the_curve_of_all_and_curves_never_fall():
    yes, fits, kinds = zip(*answers("colour", 0.9), *answers("text", 0.5, count=10), strict=True)
    calibration = fit_calibration(yes, fits, kinds)
    assert set(calibration.curves) == {ANY, "colour"}
    assert calibration.probability(0.7, "text") == calibration.probability(0.7, "never seen")
    for scores, shares in calibration.curves.values():
        assert list(scores) == sorted(scores) and list(shares) == sorted(shares)
    assert fit_curve([0.2, 0.2, 0.8], [True, False, True]) == ((0.2, 0.8), (0.5, 1.0))


def test_a_calibration_is_read_as_it_was_written_and_a_file_of_another_form_is_refused(tmp_path: Path):
    yes, fits, kinds = zip(*answers("colour", 0.9), strict=True)
    calibration, path = fit_calibration(yes, fits, kinds), tmp_path / "calibration.json"
    path.write_text(calibration.to_json())
    assert read_calibration(path) == calibration
    for content in ("{}", "[]", '{"any": {"yes": [0.1], "fits": []}}', "no"):
        path.write_text(content)
        with pytest.raises(ConfigError, match="judge.calibration"):
            read_calibration(path)


def test_a_threshold_counts_all_questions_of_its_probability():
    assert least_threshold([0.9, 0.5, 0.5, 0.1], [True, True, False, False], 0.6) == 0.5
    assert least_threshold([0.9, 0.5, 0.5, 0.1], [True, True, False, False], 0.9) == 0.9
    assert least_threshold([0.5, 0.5], [True, False], 0.9) is None


@pytest.mark.parametrize(
    ("text", "style", "differences", "kind"),
    [
        ("paint it", "keep", ["attribute: red -> blue"], "attribute"),
        ("paint it and add a cat", "keep", ["attribute: red -> blue", "added: nothing -> a cat"], "several"),
        ("add a cat", "short 2", ["attribute: red -> blue", "added: nothing -> a cat"], "added"),
        ("paint it", "short", ["attribute: red -> blue", "added: nothing -> a cat"], "attribute"),
        ("keep the white background but turn the small red star into a cross", "keep", [], "shape"),
        ("on a light grey background", "short", [], "background"),
        ("no small striped red star", "noun phrase", [], "removed"),
        ("nothing of the kind", "keep", [], ANY),
    ],
)
def test_the_kind_is_that_of_the_difference_that_the_text_states(
    text: str, style: str, differences: list[str], kind: str
):
    assert kind_of(text, style, differences, "tiny") == kind


def test_prose_without_patterns_has_no_kind():
    assert kind_of("make the small red star blue", "keep", [], "plain") == ANY
