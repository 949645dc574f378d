"""A sample of a folder holds whole runs of adjacent files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.calibrate.folder import form_values, sample_runs
from tasks.config import load_params


@given(st.integers(0, 400), st.integers(3, 300), st.integers(1, 60))
def test_a_part_of_a_folder_is_whole_runs_of_neighbours_from_end_to_end(count: int, limit: int, run: int):
    taken = sample_runs(list(range(count)), limit, run)
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


def test_a_folder_without_captions_says_what_the_gate_would_say(project: Path, capsys: pytest.CaptureFixture[str]):
    params = load_params(project / "params.yaml")
    assert form_values(params, {"caption_share": 0.0})["validate"] == {"images": {"caption_share_min": 0}}
    assert "0% of the images have one, the images gate wants 50%" in capsys.readouterr().out
