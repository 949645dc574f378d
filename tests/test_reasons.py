"""The list of reasons is closed: what the stages can say stands in it, with a sentence."""

import re
from pathlib import Path

from tasks.caption import checks
from tasks.fingerprints import takedown
from tasks.ingest import stage as ingest
from tasks.reasons import REASONS, why


def test_every_reason_of_the_code_has_its_sentence(project: Path):
    assert set(ingest.REASONS) == set(REASONS["ingest"])
    assert set(checks.EXPLAINED) < set(REASONS["caption"])
    for stage, names in (
        ("embed", "no_caption|bad_vector"),
        ("select", "over_quota|copy_of_query|near_duplicate_negative"),
        ("recaption", "empty_reply"),
    ):
        taken_down = {takedown.REASON} if stage == "select" else set()
        assert set(re.findall(rf'"({names})"', (project / "tasks" / f"{stage}.py").read_text())) | taken_down == set(
            REASONS[stage]
        )
    judge = (project / "tasks" / "judge.py").read_text()
    assert all(f'"{reason}"' in judge for reason in REASONS["judge"])
    assert all(10 < len(why(stage, reason)) < 80 for stage, reasons in REASONS.items() for reason in reasons)
    assert why("judge", "out_of_mood") == ""
