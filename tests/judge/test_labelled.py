"""Quality of the judge on labelled questions: a judge that does not see its images stops the part."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import load_params
from tasks.errors import ConfigError, DataError
from tasks.judge.labelled import judge_metrics, labelled_questions, measure_judge, read_labelled, require_quality
from tasks.judge.questions import Calibrator
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner
from tasks.store import Store
from tests.support.fake_llm import FakeLlm

SAMPLE = Path("tasks/sample")


def test_metrics_are_those_counted_by_hand():
    metrics = judge_metrics([0.9, 0.6, 0.4, 0.6, 0.1, 0.2], [True, True, True, False, False, False], threshold=0.5)
    assert metrics.accuracy == pytest.approx(4 / 6)
    assert (metrics.true_yes, metrics.false_yes) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert metrics.auc == pytest.approx((3 + 2.5 + 2) / 9)
    with pytest.raises(DataError, match="both kinds are needed"):
        judge_metrics([0.5], [True], 0.5)


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
def test_a_constant_judge_is_refused_whatever_the_share_of_no(constant: float):
    config, fits = load_params("params.yaml").judge, [True] + [False] * 19
    metrics = judge_metrics([constant] * 20, fits, config.threshold)
    assert metrics.auc == 0.5
    with pytest.raises(DataError, match="judge.auc_min"):
        require_quality(metrics, config, "blind")
    require_quality(judge_metrics([0.95] + [0.1] * 19, fits, config.threshold), config, "sees")


def test_the_sample_judge_is_good_enough_and_one_that_always_says_yes_is_not(tmp_path: Path):
    params = load_params("params.yaml", "demo")
    named = params.judge.model_copy(update={"labelled": str(SAMPLE / "labelled" / "labels.csv")})
    calibrator = Calibrator.load(params)
    judge = load_captioner(LlmConfig(params.judge.model, device="cpu"))
    template = "Does it fit: {instruction}"
    metrics = measure_judge(judge, template, named, Store(tmp_path), calibrator)
    require_quality(metrics, params.judge, judge.name)
    assert metrics.accuracy >= 0.8 and metrics.false_yes <= 0.1 and metrics.auc >= 0.9
    before = judge.usage.requests
    assert measure_judge(judge, template, named, Store(tmp_path), calibrator) == metrics
    assert judge.usage.requests == before  # measured once
    yes_man = measure_judge(FakeLlm(yes=lambda _: 1.0), template, named, Store(tmp_path))
    with pytest.raises(DataError, match=r"right on 50\.0% of 120 .* accepts 100\.0% of the wrong candidates"):
        require_quality(yes_man, params.judge, "yes-man")


def test_the_plain_questions_come_in_pairs_of_right_and_wrong():
    rows = read_labelled(SAMPLE / "plain" / "labels.csv")
    assert len(rows) == 48 and [r["fits"] for r in rows] == [True, False] * 24
    for right, wrong in zip(rows[::2], rows[1::2], strict=True):
        assert right["instruction"] == wrong["instruction"] and right["query"] == wrong["query"]
        assert right["candidate"] != wrong["candidate"]
    assert len(labelled_questions(rows, SAMPLE / "plain")) == 48


def test_profile_production_names_the_plain_questions():
    assert load_params("params.yaml", "production").judge.labelled == "tasks/sample/plain/labels.csv"


def test_csv_and_parquet_are_read_alike_and_other_answers_are_refused(tmp_path: Path):
    rows = read_labelled(SAMPLE / "labelled" / "labels.csv")
    assert len(rows) == 120 and sum(r["fits"] for r in rows) == 60
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels.parquet")
    assert read_labelled(tmp_path / "labels.parquet") == rows
    (tmp_path / "labels.csv").write_text("query,candidate,instruction,fits\na.png,b.png,make it red,perhaps\n")
    with pytest.raises(ConfigError, match="row 1: 'fits' is 'perhaps'"):
        read_labelled(tmp_path / "labels.csv")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_labelled(tmp_path / "none.csv")


def test_the_example_file_is_read_and_an_empty_answer_is_named(tmp_path: Path):
    rows = read_labelled(Path("docs/labelled/labels.csv"))
    assert [r["fits"] for r in rows] == [True, False, True, False]
    (tmp_path / "labels.csv").write_text("query,candidate,instruction,fits\na.jpg,b.jpg,make it red,\n")
    with pytest.raises(ConfigError, match="row 1: expected a value in each of"):
        read_labelled(tmp_path / "labels.csv")
