"""What the home page says of a version, out of its version.json alone."""

from pathlib import Path

import pytest

from tasks.browse import promotions
from tasks.browse.overview import (
    course,
    drops_of,
    home_row,
    model_row,
    quality_table,
    refused_rows,
    share_text,
    sparkline,
)

RECORD = {
    "version": "2026.11.28",
    "date": "2026-11-28",
    "fingerprint": "ab" * 32,
    "rows": {"triplets": 1173},
    "new_rows": {"images": 243, "captioned": 948, "triplets": 332},
    "drops": {"judge": {"wrong_target": 1543}, "ingest": {"duplicate": 48}},
    "new_drops": {"judge": {"wrong_target": 500}},
    "quality": {"judge": {"shortcut_share": 0.021}},
    "ledger": {"per_triplet": {"prompt_tokens": 1000.4, "output_tokens": 200.0}},
}


def test_a_version_is_a_row_with_its_yield_cost_and_the_model_that_it_trained():
    models = [{"name": "2026.11.29", "message": "Model 2026.11.29, trained on 2026.11.28: promoted"}]
    row = home_row(RECORD, models)
    assert (row["yield"], row["shortcut"], row["tokens"], row["model"]) == ("35%", "2.1%", "1,200", "2026.11.29")
    assert (row["dropped"], row["total"], row["fingerprint"]) == ("500", "1,173", "abababababab")
    assert home_row({"version": "2026.11.01"}, models)["yield"] == "–", "an old record lacks most of it"


def test_what_was_left_out_is_listed_with_what_is_new_first_and_why():
    rows = drops_of(RECORD)
    assert [(row["reason"], row["new"], row["all"]) for row in rows] == [
        ("wrong_target", 500, 1543),
        ("duplicate", 0, 48),
    ]
    assert all(row["why"] for row in rows)


def test_the_course_of_a_share_has_its_ends_in_words():
    """A line alone shows a fall from 93 to 91% as one from all to nothing."""
    rows = [{"yield_share": share, "yield": text} for share, text in ((0.91, "91%"), (None, "–"), (0.93, "93%"))]
    points, newest, ends = course(rows, "yield_share")
    assert points.count(",") == 2 and (newest, ends) == ("91%", "lowest 91%, highest 93%")
    assert course([{"yield_share": None, "yield": "–"}], "yield_share") == ("", "–", "")


def test_a_sparkline_needs_two_values_and_skips_what_is_missing():
    assert sparkline([0.5]) == sparkline([None, 0.5]) == ""
    assert sparkline([0.0, None, 1.0], width=104, height=24) == "2.0,22.0 102.0,2.0"
    assert (share_text(0.354), share_text(0.021), share_text(None)) == ("35%", "2.1%", "–")


def test_quality_and_cost_have_a_row_a_version_and_only_columns_that_are_known():
    gates = {"images_rows": 237.0, "images_quarantined_rows": 3.0, "pairs_rows": 60.0, "pairs_quarantined_rows": 0.0}
    week = {"true_share": 0.964, "complete_share": None}
    known = {**RECORD, "quality": {"validate": gates}, "weeks": {"2026.11.28": week, "2026.11.21": {"true_share": 1}}}
    head, rows = quality_table(
        [known, {"version": "2026.11.21"}], [{"per_triplet": {"cpu_s": 1.944, "gpu_s": 0.0}}, {}]
    )
    assert head == ["version", "quarantined rows", "true texts", "CPU s a triplet", "tokens a triplet"]
    assert rows == [["2026.11.28", "3 of 300, 1.0%", "96%", "1.94", "1,200"], ["2026.11.21", "–", "–", "–", "–"]]
    assert quality_table([], []) == (["version"], [])


def test_a_model_has_each_score_with_its_interval_the_main_metric_first():
    scores = {"composed": {"recall_at_1": 0.1, "map_at_5": 0.2666}, "image_only": {"map_at_5": 0.08}}
    evaluation = {
        "main_metric": "map_at_5",
        "metrics": {"base": {"composed": {"map_at_5": 0.1163}}, "finetuned": scores},
        "intervals": {"finetuned": {"composed": {"map_at_5": [0.2353, 0.2981]}}},
    }
    row = model_row({"name": "2026.11.29", "message": "Model", "evaluation": evaluation})
    assert row["scores"] == [
        ("finetuned", {"composed": "26.7 (23.5 to 29.8)", "image_only": "8.0", "text_only": "–"}),
        ("base", {"composed": "11.6", "image_only": "–", "text_only": "–"}),
    ]
    assert row["more"] == [("finetuned", [("recall_at_1", "10.0")])]
    assert model_row({"name": "old", "message": "", "evaluation": {}})["scores"] == []


def test_why_a_model_run_promoted_nothing_is_kept_beside_the_clone_and_shown(tmp_path: Path, caplog):
    clone, run = tmp_path / "dataset", tmp_path / "run"
    (run / "reports").mkdir(parents=True)
    (run / "version.json").write_text('{"version": "2026.11.28"}')
    (run / "reports" / "evaluation.json").write_text(
        '{"intervals": {"finetuned": {"composed": {"map_at_5": [0.1, 0.3]}}}}'
    )
    figures = {"is_promoted": 0.0, "base_map_at_5": 0.3, "finetuned_map_at_5": 0.2}
    assert promotions.read(clone) == []
    promotions.keep(clone, run, "first", {"figures": {"is_promoted": 0.0}, "notes": ["not promoted: a first try"]})
    promotions.keep(clone, run, "second", {"figures": {"is_promoted": 1.0}, "notes": ["model/x", "promoted: better"]})
    promotions.keep(clone, run, "first", {"figures": figures, "notes": ["not promoted: worse than base"]})
    with (tmp_path / promotions.FILE).open("a") as file:
        file.write('{"at": "half a li\n[]\n{"at": "", "run_id": "x", "data_version": "", "is_promoted": false}\n')
    decisions = promotions.read(clone)
    assert [(d.run_id, d.is_promoted) for d in decisions] == [("first", False), ("second", True)]
    assert len([r for r in caplog.records if "no decision" in r.message]) == 3
    (row,) = refused_rows(decisions)
    assert (row["data_version"], row["why"]) == ("2026.11.28", "not promoted: worse than base")
    assert row["scores"] == [("finetuned", "20.0 (10.0 to 30.0)"), ("base", "30.0")]
    assert home_row(RECORD, [], decisions)["not_promoted"] == "not promoted: worse than base"
    models = [{"name": "m", "message": "Model m, trained on 2026.11.28: better"}]
    assert home_row(RECORD, models, decisions)["not_promoted"] == "", "another run of it was promoted"


@pytest.mark.parametrize("report", [{}, {"notes": ["dry run: not promoted, though better"]}])
def test_a_decision_needs_neither_scores_nor_files(tmp_path: Path, report: dict):
    promotions.keep(tmp_path / "dataset", tmp_path / "gone", "run", report)
    (decision,) = promotions.read(tmp_path / "dataset")
    assert not decision.is_promoted and decision.scores == {} and decision.why == (report.get("notes") or [""])[0]
