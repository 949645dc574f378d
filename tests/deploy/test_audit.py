"""`make audit`: unjudged findings fail, judged ones are said with their reason, and no answer never reads as none."""

import datetime
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TODAY = datetime.date(2026, 11, 29)


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", Path("deploy/audit.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["audit"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


FINDING = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
PACKAGES: list[dict[str, Any]] = [
    {"name": "good", "version": "1.0", "vulns": []},
    {"name": "bad", "version": "1.0", "vulns": [FINDING]},
]


def judgement(audit: ModuleType, until: datetime.date, package: str = "bad") -> dict[str, Any]:
    return {"CVE-1": audit.Judgement(package, "its server is not started", until)}


def test_a_finding_that_nobody_judged_fails(audit: ModuleType):
    lines, is_good = audit.judge(PACKAGES, {}, TODAY)
    assert not is_good and lines == ["FOUND    bad 1.0: PYSEC-1, mended in 2.0"]


def test_a_judged_one_is_said_with_its_reason_by_any_of_its_names(audit: ModuleType):
    lines, is_good = audit.judge(PACKAGES, judgement(audit, TODAY), TODAY)
    assert is_good and lines == ["judged   bad 1.0: PYSEC-1: its server is not started"]


def test_a_judgement_runs_out_and_holds_for_its_package_alone(audit: ModuleType):
    lines, is_good = audit.judge(PACKAGES, judgement(audit, TODAY - datetime.timedelta(1)), TODAY)
    assert not is_good and lines[0].startswith("RUN OUT")
    lines, is_good = audit.judge(PACKAGES, judgement(audit, TODAY, "other"), TODAY)
    assert not is_good and lines[0].startswith("FOUND") and lines[1].startswith("unused   CVE-1")


def test_where_no_service_answers_it_says_so_and_does_not_fail(audit: ModuleType, capsys: pytest.CaptureFixture[str]):
    assert audit.main([], lambda lock, service: None) == 0
    assert "NOTHING WAS AUDITED" in capsys.readouterr().out
    assert audit.main([], lambda lock, service: PACKAGES if service == "osv" else None) == 1
    assert "looked up at osv" in capsys.readouterr().out


def test_a_service_that_knows_no_package_is_no_answer(audit: ModuleType, monkeypatch: pytest.MonkeyPatch):
    def run(*_: object, **__: object) -> Any:
        class Done:
            stdout = '{"dependencies": [{"name": "a", "skip_reason": "not found"}]}'

        return Done()

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.ask(Path("requirements.lock"), "pypi") is None


def test_every_judgement_states_package_reason_and_date(audit: ModuleType, tmp_path: Path):
    audit.read_judgements(audit.IGNORED)
    path = tmp_path / "ignore.toml"
    path.write_text('[CVE-1]\npackage = "bad"\nreason = ""\nuntil = 2027-01-01\n')
    with pytest.raises(ValueError, match="CVE-1: expected package, reason and until"):
        audit.read_judgements(path)
