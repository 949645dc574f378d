"""What people's answers decide: more than half of them, the last answer of each, and no name in what a run keeps."""

import itertools
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.reviews.answers import Review, Reviews
from tasks.reviews.verdicts import RUN_FILE, Verdict, decide, deployment_verdicts, read_verdicts, write_verdicts


def review(name: str, answer: str, **more: str) -> Review:
    values = {"version": "2026.11.28", "row_id": "t1", "instruction": "in blue", "query": "q", "target": "t", **more}
    return Review(at="2026-11-29T00:00:00+00:00", name=name, answer=answer, **values)


def words(verdict: Verdict) -> str:
    return "right" if verdict.is_right else "wrong" if verdict.is_wrong else "open"


@pytest.mark.parametrize(
    ("answers", "decided"),
    [
        ("ann:wrong", ["wrong"]),
        ("ann:wrong bob:right", []),
        ("ann:wrong bob:unsure", ["wrong"]),
        ("ann:unsure", []),
        ("ann:wrong bob:right cem:right", ["right"]),
        ("ann:wrong ann:right", ["right"]),
        ("ann:wrong ann:unsure", []),
    ],
)
def test_more_people_decide_and_a_tie_changes_nothing(answers: str, decided: list[str]):
    given = [review(*answer.split(":")) for answer in answers.split()]
    assert [words(verdict) for verdict in decide(given)] == decided


def test_a_text_and_a_better_image_count_where_more_than_half_name_them():
    given = [
        review("ann", "wrong", text="in  dark blue", better="n"),
        review("bob", "right", text="in dark blue"),
        review("cem", "right", better="n"),
        review("dan", "unsure", text="in green", better="m"),
    ]
    [verdict] = decide(given)
    assert (verdict.right, verdict.wrong, verdict.text, verdict.fits) == (2, 1, "in dark blue", ("n",))
    assert all(decide(order) == [verdict] for order in itertools.permutations(given))
    [without] = decide([*given[1:], review("ann", "wrong", better="t")])
    assert (without.text, without.fits) == ("", ())


def test_an_answer_is_about_images_and_text_whatever_the_rows_id_was():
    given = [review("ann", "wrong"), review("ann", "right", row_id="p1"), review("bob", "wrong", instruction="round")]
    assert [(v.instruction, words(v), v.row_ids) for v in decide(given)] == [
        ("in blue", "right", ("p1",)),
        ("round", "wrong", ("t1",)),
    ]


def test_a_run_keeps_verdicts_without_names_and_none_where_nobody_answered(tmp_path: Path):
    clone, run = tmp_path / "dataset", tmp_path / "run"
    clone.mkdir()
    assert deployment_verdicts(clone).verdicts == () and read_verdicts(run) == []
    write_verdicts(run, [])
    assert not run.exists()
    Reviews(clone).add(review("ann.person", "wrong", text="in dark blue", better="n"))
    write_verdicts(run, deployment_verdicts(clone).verdicts)
    assert read_verdicts(run) == [Verdict("q", "t", "in blue", 0, 1, "in dark blue", ("n",), ("t1",))]
    assert "ann" not in (run / RUN_FILE).read_text()
    (run / RUN_FILE).write_text("{}\n")
    with pytest.raises(DataError, match="close the run and open it again"):
        read_verdicts(run)
