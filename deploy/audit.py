"""Look the locked packages up in the advisory databases; findings are judged in audit-ignore.toml, each with a reason.

    make audit        (python deploy/audit.py [LOCK])

Runs pip-audit, in an environment of its own (uv tool run), over requirements.lock: PyPI's advisories, else OSV's. Ends
with 1 on a finding that is not judged, or whose judgement has run out. Where no advisory service answers (an index that
only serves files, a machine without a network) it says that nothing was audited and ends with 0: no answer is no
finding, and never reads as none.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IGNORED = Path(__file__).with_name("audit-ignore.toml")
PIP_AUDIT = "pip-audit==2.10.1"
SERVICES = ("pypi", "osv")
TIMEOUT_S = 300


@dataclass(frozen=True)
class Judgement:
    """A finding that was looked at.

    Attributes:
        package: name.
        reason: why it does not concern this product, or what holds it off.
        until: when it has to be looked at again.
    """

    package: str
    reason: str
    until: datetime.date


def read_judgements(path: Path) -> dict[str, Judgement]:
    """Advisory id -> its judgement.

    Raises:
        ValueError: an entry lacks package, reason or until.
    """
    result = {}
    for name, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if not (entry.get("package") and entry.get("reason") and isinstance(entry.get("until"), datetime.date)):
            raise ValueError(f"{path.name}: {name}: expected package, reason and until (a date); found {entry}")
        result[name] = Judgement(entry["package"], entry["reason"], entry["until"])
    return result


def ask(lock: Path, service: str) -> list[dict[str, Any]] | None:
    """pip-audit's dependencies of a lock by one service; None where it gave no answer."""
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv) if uv.exists() else "uv", "tool", "run", "--from", PIP_AUDIT, "pip-audit", "-r", str(lock)]
    command += ["--no-deps", "--disable-pip", "--progress-spinner", "off", "-s", service, "-f", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    dependencies: list[dict[str, Any]] = answer["dependencies"]
    # an index that knows no advisories makes pip-audit skip every package and end with 0
    return dependencies if any("skip_reason" not in d for d in dependencies) else None


def judge(
    dependencies: Sequence[Mapping[str, Any]], judgements: Mapping[str, Judgement], today: datetime.date
) -> tuple[list[str], bool]:
    """What to print, and whether all findings are judged."""
    lines, is_good, seen = [], True, set()
    for dependency in dependencies:
        for finding in dependency.get("vulns") or ():
            names = {finding["id"], *(finding.get("aliases") or ())}
            known = next((name for name in sorted(names) if name in judgements), None)
            where = f"{dependency['name']} {dependency['version']}: {finding['id']}"
            fixed = ", ".join(finding.get("fix_versions") or ()) or "no version"
            if known is None or judgements[known].package != dependency["name"]:
                lines.append(f"FOUND    {where}, mended in {fixed}")
                is_good = False
                continue
            seen.add(known)
            if judgements[known].until < today:
                lines.append(f"RUN OUT  {where}, mended in {fixed}; judged until {judgements[known].until}")
                is_good = False
            else:
                lines.append(f"judged   {where}: {judgements[known].reason}")
    skipped = [d["name"] for d in dependencies if "skip_reason" in d]
    lines += [f"unused   {name} of {IGNORED.name}: no such finding; remove it" for name in sorted({*judgements} - seen)]
    if skipped:
        lines.append(f"skipped  {len(skipped)} packages that the service does not know: {', '.join(skipped[:10])}")
    return lines, is_good


def main(argv: Sequence[str], ask: Callable[[Path, str], list[dict[str, Any]] | None] = ask) -> int:
    """Print the findings; returns the exit code."""
    lock = Path(argv[0]) if argv else ROOT / "requirements.lock"
    judgements = read_judgements(IGNORED)
    for service in SERVICES:
        if (dependencies := ask(lock, service)) is not None:
            lines, is_good = judge(dependencies, judgements, datetime.datetime.now(datetime.UTC).date())
            print("\n".join([*lines, f"audit: {len(dependencies)} packages of {lock.name} looked up at {service}"]))
            return 0 if is_good else 1
    services = ", ".join(SERVICES)
    print(f"audit: NOTHING WAS AUDITED: no advisory service answered ({services}); run it where one can be reached")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
