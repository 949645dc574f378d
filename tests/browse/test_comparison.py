"""Two versions side by side: shares in percent and points, counts with their sign, and only what one of them has."""

from typing import Any

from tasks.browse.comparison import comparison

FIRST: dict[str, Any] = {
    "version": "2026.11.21",
    "new_rows": {"images": 1999, "triplets": 918},
    "new_drops": {"judge": {"wrong_target": 177}},
    "weeks": {"2026.11.21": {"yield": 0.823, "shortcut_share": 0.027}},
    "quality": {"judge": {"shortcut_share": 0.027, "negatives_mean": 2.4706}},
}
SECOND: dict[str, Any] = {
    "version": "2026.11.28",
    "new_rows": {"images": 237, "triplets": 918},
    "new_drops": {"ingest": {"duplicate": 5}},
    "weeks": {"2026.11.21": {"yield": 0.823}, "2026.11.28": {"yield": 0.74, "shortcut_share": None}},
}


def test_each_group_names_what_at_least_one_version_has():
    groups = {group["title"]: group for group in comparison(FIRST, SECOND)}
    rows = {name: [tuple(row.values()) for row in group["rows"]] for name, group in groups.items()}
    assert rows["Quality of the new rows"] == [
        ("triplets per written pair", "82.3%", "74.0%", "−8.3 points"),
        ("shortcuts", "2.7%", "–", "–"),
    ]
    assert rows["Rows"] == [
        ("new images", "1,999", "237", "−1,762"),
        ("new triplets", "918", "918", "0"),
    ]
    assert rows["New rows left out"] == [
        ("judge: wrong_target", "177", "–", "–"),
        ("ingest: duplicate", "–", "5", "–"),
    ]
    assert rows["All figures of the stages"][1] == ("judge: negatives_mean", "2.471", "–", "–")
    assert [title for title, group in groups.items() if group["is_folded"]] == ["All figures of the stages"]


def test_versions_without_figures_have_no_empty_groups():
    assert comparison({"version": "a"}, {"version": "b"}) == []
