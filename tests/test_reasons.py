"""The list of reasons is closed: every reason that a stage can give is in it, with one sentence."""

from pathlib import Path

from tasks.caption import checks
from tasks.fingerprints import takedown
from tasks.ingest import stage as ingest
from tasks.reasons import COPY_REASONS, REASONS, UNREADABLE_REASONS, why


def test_every_reason_of_the_code_has_its_sentence(project: Path):
    assert set(ingest.REASONS) == set(REASONS["ingest"])
    assert set(checks.EXPLANATIONS) < set(REASONS["caption"])
    assert takedown.REASON in REASONS["select"]
    assert all(10 < len(why(stage, reason)) < 100 for stage, reasons in REASONS.items() for reason in reasons)
    assert why("judge", "out_of_mood") == ""


def test_the_gates_sets_of_reasons_are_reasons_of_ingest():
    for reasons in (UNREADABLE_REASONS, COPY_REASONS):
        assert set(reasons) <= set(REASONS["ingest"]) and len(set(reasons)) == len(reasons)
    assert not set(UNREADABLE_REASONS) & set(COPY_REASONS)
