"""What the requests to models took: counts, tokens and seconds per part, per version, per accepted triplet.

A stage's tables say how many requests and tokens a row took, the same after every crash. Usage says what was really
paid: tokens of replies that came out of the request cache are not in it. Each chunk appends one JSON line to
.run/usage/<stage>[@part].jsonl, which belongs to this run alone and is never versioned; `version` puts the sums into
version.json (key `ledger`) and the card.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COUNTERS = ("requests", "cached", "prompt_tokens", "output_tokens", "seconds", "cpu_s", "gpu_s")
PER_TRIPLET = ("requests", "prompt_tokens", "output_tokens", "cpu_s", "gpu_s")


@dataclass
class Usage:
    """Counters of the requests to models; equal fields of two usages add up.

    Attributes:
        requests: all of them, cached ones too, a count.
        cached: of those, answered from the cache, a count.
        prompt_tokens, output_tokens: paid, counts.
        seconds: wall time in the models, s.
        cpu_s: CPU time of this process in the models, s.
        gpu_s: wall time in models that lie on a GPU, s.
        rejected: replies that could not be used, by check, counts.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    rejected: dict[str, int] = field(default_factory=dict)

    def reject(self, reason: str) -> None:
        """Count a reply that a check refused."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    @contextmanager
    def clock(self, *, on_gpu: bool = False) -> Iterator[None]:
        """Add the time spent inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            elapsed_s = time.perf_counter() - wall
            self.seconds += elapsed_s
            self.cpu_s += time.process_time() - cpu
            self.gpu_s += elapsed_s if on_gpu else 0.0

    def record(self) -> dict[str, Any]:
        """As plain JSON values, times to the millisecond."""
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}

    @property
    def cached_share(self) -> float:
        """Requests answered from the cache, of all; 0 without requests."""
        return self.cached / self.requests if self.requests else 0.0

    def sentence(self) -> str:
        """For a person."""
        refused = ", ".join(f"{reason} {count}" for reason, count in sorted(self.rejected.items())) or "none"
        time_on = f"{self.gpu_s:.1f} GPU-s" if self.gpu_s else f"{self.cpu_s:.1f} CPU-s"
        return (
            f"{self.requests} requests ({self.cached_share:.0%} from the cache), "
            f"paid {self.prompt_tokens} prompt and {self.output_tokens} output tokens, "
            f"{time_on}; replies refused: {refused}"
        )


def total_usage(parts: Iterable[Usage | Mapping[str, Any]]) -> Usage:
    """The sum of usages or of their records; unknown keys of a record are ignored."""
    total = Usage()
    for part in parts:
        values = part.record() if isinstance(part, Usage) else part
        for name in COUNTERS:
            setattr(total, name, getattr(total, name) + values.get(name, 0))
        for reason, count in (values.get("rejected") or {}).items():
            total.rejected[reason] = total.rejected.get(reason, 0) + count
    return total


def append_usage(root: Path, stage: str, part: tuple[int, int] | None, usage: Usage) -> None:
    """Add a line to the part's file: one write, so that a killed run leaves whole lines."""
    name = stage + (f"@{part[0]}-of-{part[1]}" if part else "")
    path = root / ".run" / "usage" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(usage.record(), sort_keys=True).encode() + b"\n")


def read_usage(root: Path) -> dict[str, Usage]:
    """Per stage the sum over its parts and tries in this run; a line cut off by a crash is skipped."""
    records: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((root / ".run" / "usage").glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                records.setdefault(path.stem.partition("@")[0], []).append(json.loads(line))
            except ValueError:
                continue
    return {stage: total_usage(parts) for stage, parts in records.items()}


def usage_summary(stages: Mapping[str, Usage], *, triplets: int, pairs: int) -> dict[str, Any]:
    """version.json's `ledger`: sums per stage, and what one of this run's accepted triplets took; {} without usage.

    Args:
        stages: stage -> its usage in this run.
        triplets: accepted in this run, a count.
        pairs: captioned in this run, a count.
    """
    if not stages:
        return {}
    total = total_usage(stages.values())
    per_triplet = {name: round(getattr(total, name) / triplets, 4) for name in PER_TRIPLET} if triplets else {}
    sums = {s: {**usage.record(), "cached_share": round(usage.cached_share, 4)} for s, usage in stages.items()}
    return {"stages": sums, "per_triplet": per_triplet, "triplets": triplets, "pairs": pairs}
