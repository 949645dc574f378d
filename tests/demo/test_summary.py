"""The demo's summary: counts from the tasks' reports, in the form that readers of summary.json rely on."""

from pathlib import Path

from tasks.demo.summary import (
    TaskRun,
    certainty_lines,
    count_drops,
    count_increments,
    counts_text,
    stage_seconds,
    summary_text,
    week_lines,
)


def done(task_id: str, label: str = "", seconds: float = 1.0, **report: object) -> TaskRun:
    return TaskRun(task_id, label, "success", seconds, dict(report))


def test_count_drops_parts_and_runs_add_up():
    tasks = [
        done("judge", "1/2", dropped={"wrong_target": 3}),
        done("judge", "2/2", dropped={"wrong_target": 4, "ambiguous": 1}),
        done("ingest"),
    ]
    assert count_drops(tasks) == {"judge": {"wrong_target": 7, "ambiguous": 1}}


def test_seconds_are_wall_seconds_by_stage_and_a_total():
    assert stage_seconds(
        [done("embed", "semantic", 2.04), done("embed", "pattern", 3.0), done("ingest", "", 1.5)], 60.04
    ) == {
        "embed": 5.0,
        "ingest": 1.5,
        "total": 60.0,
    }


def test_incremental_adds_parts_and_shows_each_encoder():
    tasks = [
        done("open_run", new=9),
        done("validate_images", new=9),
        done("embed", "semantic", new=20, done=20, reused=200),
        done("embed", "caption", new=19, done=19, reused=199),
        done("caption", "1/2", new=5, done=5, reused=0),
        done("caption", "2/2", new=6, done=6, reused=0),
    ]
    assert count_increments(tasks) == {
        "embed@semantic": {"new": 20, "done": 20, "reused": 200},
        "embed@caption": {"new": 19, "done": 19, "reused": 199},
        "embed": {"new": 20, "done": 20, "reused": 200},
        "caption": {"new": 11, "done": 11, "reused": 0},
    }


def test_parts_of_an_encoder_add_up_and_what_a_stage_merges_is_counted_once():
    tasks = [
        done("ingest_list", new=9, done=9),
        done("ingest_fetch", "1/2", new=5, done=5),
        done("ingest", new=9, done=9),
        done("embed", "semantic@1/2", new=10, done=10, reused=200),
        done("embed", "semantic@2/2", new=7, done=7),
        done("embed", "caption@1/2", new=9, done=9, reused=199),
        done("mine_part", "semantic@1/2", new=3),
    ]
    assert count_increments(tasks) == {
        "ingest": {"new": 9, "done": 9, "reused": 0},
        "embed@semantic": {"new": 17, "done": 17, "reused": 200},
        "embed@caption": {"new": 9, "done": 9, "reused": 199},
        "embed": {"new": 17, "done": 17, "reused": 200},
    }


def test_a_line_says_counts_and_the_commonest_reason_first():
    report = {"read": 2200, "written": 2000, "dropped": {"undecodable": 3, "duplicate": 197}}
    assert counts_text(report) == "read 2,200, written 2,000, dropped 197 duplicate, 3 undecodable"


def test_the_last_page_names_versions_figures_and_where_to_look():
    summary = {
        "versions": ["dataset/2026.11.17", "dataset/2026.11.24"],
        "fingerprints": {
            "dataset/2026.11.17": "0123456789abcdef" + 48 * "0",
            "dataset/2026.11.24": "fedcba9876543210" + 48 * "0",
        },
        "images": 2100,
        "pairs": 1500,
        "triplets": 1200,
        "drops": {"ingest": {"duplicate": 44}},
        "seconds": {"ingest": 9.6, "total": 300.0},
        "promoted": True,
        "why": "30.1 over 12.0",
        "metrics": {
            "base": {"composed": {"map_at_5": 0.12, "recall_at_1": 0.08, "recall_at_10": 0.3}},
            "finetuned": {"image_only": {"map_at_5": 0.301}},
        },
        "truth": {"instructions_true": 0.934, "instructions_complete": 0.921},
        "incremental": {"embed": {"new": 200, "done": 200, "reused": 2000}},
    }
    text = summary_text(summary, Path(".demo"))
    parts = (
        "dataset/2026.11.24",
        "fingerprint fedcba9876543210 dataset/2026.11.24",
        "1,200 triplets",
        "44 duplicate",
        "finetuned, image only",
        "30.1",
        f"{'true texts':<28}{93.4:>7.1f}%",
        f"{'complete texts':<28}{92.1:>7.1f}%",
        "make ui",
        "promoted    yes: 30.1",
    )
    assert [part for part in (*parts, ".demo/gallery.html") if part not in text] == []


def test_the_last_page_says_how_sure_the_scores_are():
    summary = {"main_metric": "map_at_5", "intervals": {"finetuned": {"composed": {"map_at_5": [0.142, 0.181]}}}}
    summary["composition_gap"] = {"finetuned": {"over": "image_only", "value": 0.031, "interval": [0.012, 0.05]}}
    summary["paraphrases"] = {"finetuned": {"worst": 0.1, "best": 0.22}}
    (line,) = certainty_lines(summary)
    assert "95% interval 14.2 to 18.1; +3.1 (+1.2 to +5.0) over image only; worst wording 10.0, best 22.0" in line
    assert certainty_lines({}) == []


def test_weeks_stand_side_by_side_never_pooled():
    """A second week that is worse than the first is seen, whatever the mean says."""
    weeks = {
        "2026.11.21": {"pairs": 1800, "triplets": 955, "texts": 4000, "yield": 0.53, "true_share": 0.964},
        "2026.11.28": {"pairs": 948, "triplets": 218, "texts": 900, "yield": 0.23, "true_share": None},
    }
    lines = week_lines(weeks)
    assert lines[2].split() == ["2026.11.21", "2026.11.28"]
    rows = {line[:30].strip(): line[30:].split() for line in lines[3:]}
    assert rows["true texts"] == ["96.4%", "-"] and rows["triplets per written pair"] == ["53.0%", "23.0%"]
    assert "true texts thrown away" not in rows and week_lines({}) == []
