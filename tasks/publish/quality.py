"""Quality of a version in numbers: reports/quality.json, metrics that `dvc metrics diff` compares between tags.

    dvc metrics diff dataset/2026.11.21 dataset/2026.11.28

All are of the rows that the version's own run added: what the judge let pass and how sure it was, how many targets one
modality finds alone, how varied the texts are, and what one accepted triplet cost, in all and by stage.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

QUALITY_FILE = "reports/quality.json"
OF_JUDGE = (
    "yield",
    "yes_mean",
    "instructions_mean",
    "negatives_mean",
    "false_negative_share",
    "shortcut_share",
    "composition_gap",
)
COSTS = ("cpu_s", "gpu_s", "wall_s")
TOKENS = ("requests", "prompt_tokens", "output_tokens")


def read_costs(root: Path) -> dict[str, dict[str, float]]:
    """Stage -> seconds of all its parts in this run (tasks/meter.py); empty where stages ran on other disks."""
    costs: dict[str, dict[str, float]] = {}
    for path in sorted((root / ".run" / "costs").glob("*.json")):
        stage, cost = path.stem.partition("@")[0], json.loads(path.read_text())
        sums = costs.setdefault(stage, dict.fromkeys(COSTS, 0.0))
        for name in COSTS:
            sums[name] += float(cost.get(name) or 0.0)
    return {stage: cost for stage, cost in costs.items() if stage != "version"}


def quality_metrics(version: Mapping[str, Any], costs: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The metrics; what was not measured is left out.

    Args:
        version: version.json's mapping.
        costs: of `read_costs`.
    """
    new, judge = version["new_rows"], (version.get("quality") or {}).get("judge") or {}
    week = (version.get("weeks") or {}).get(version["version"]) or {}
    metrics: dict[str, Any] = {f"new_{table}": new[table] for table in ("images", "pairs", "triplets")}
    metrics |= {name: number for name in OF_JUDGE if (number := judge.get(name)) is not None}
    shares = {name: value for name, value in week.items() if isinstance(value, int | float) and name not in new}
    metrics |= {name: value for name, value in sorted(shares.items()) if name not in metrics}
    if new["triplets"]:
        metrics["per_triplet"] = per_triplet(version, costs)
    return metrics


def per_triplet(version: Mapping[str, Any], costs: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Cost of one accepted triplet: seconds and tokens, of all stages together and of each."""
    count, usage = version["new_rows"]["triplets"], (version.get("ledger") or {}).get("stages") or {}
    stages: dict[str, dict[str, float]] = {}
    for stage in sorted({*costs, *usage}):
        seconds = {name: round(costs[stage][name] / count, 4) for name in COSTS} if stage in costs else {}
        tokens = {name: round(usage[stage][name] / count, 4) for name in TOKENS} if stage in usage else {}
        stages[stage] = {**seconds, **tokens}
    names = [name for name in (*COSTS, *TOKENS) if any(name in values for values in stages.values())]
    return {**{n: round(sum(v.get(n, 0.0) for v in stages.values()), 4) for n in names}, "stages": stages}


def quality_file(version: Mapping[str, Any], root: Path) -> bytes:
    """The content of reports/quality.json."""
    return (json.dumps(quality_metrics(version, read_costs(root)), indent=2, sort_keys=True) + "\n").encode()
