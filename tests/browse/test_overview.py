"""What the home page says of a version, out of its version.json alone."""

from tasks.browse.overview import compared, drops_of, home_row, share_text, sparkline

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


def test_two_versions_are_compared_by_what_at_least_one_of_them_has():
    other = {"version": "2026.11.21", "new_rows": {"images": 200}}
    rows = {row["name"]: row for row in compared(other, RECORD)}
    assert rows["new images"] == {"name": "new images", "first": 200.0, "second": 243.0, "difference": 43.0}
    assert rows["judge: shortcut_share"]["first"] is None and rows["judge: shortcut_share"]["difference"] is None


def test_a_sparkline_needs_two_values_and_skips_what_is_missing():
    assert sparkline([0.5]) == sparkline([None, 0.5]) == ""
    assert sparkline([0.0, None, 1.0], width=104, height=24) == "2.0,22.0 102.0,2.0"
    assert (share_text(0.354), share_text(0.021), share_text(None)) == ("35%", "2.1%", "–")
