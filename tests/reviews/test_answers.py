"""The file of people's answers survives a writer that was killed."""

from pathlib import Path

from tasks.reviews.answers import Review, Reviews


def test_an_answer_after_one_that_was_cut_off_is_kept(tmp_path: Path):
    reviews = Reviews(tmp_path / "dataset")
    first, second = (
        Review("2026-11-29T12:00:00Z", name, "2026.11.29", "t1", "paint it", "q", "t", "right")
        for name in ("Ada", "Bob")
    )
    reviews.add(first)
    whole = reviews.path.read_bytes()
    reviews.path.write_bytes(whole + whole[:20])  # a third one, killed while it was written
    reviews.add(second)
    assert reviews.read_answers().reviews == [first, second]
    assert [fault.partition(": no review")[0] for fault in reviews.read_answers().faults] == [f"{reviews.path}, line 2"]
