"""What the models of a part were asked and what it took: counts that add up, per part, per version, per accepted
triplet.

A stage's tables say how many requests and tokens a row took (the same after every crash); the ledger says what was
really
paid: tokens that came out of the request cache are not in it. One JSON line a chunk in
.run/ledger/<stage>[@part].jsonl, which is of this run alone and never versioned; `version` puts the sums into the card.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Ledger:
    """Sums; equal fields of two ledgers add.

    Attributes:
        requests: asked for, cached ones too, a count.
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
            took = time.perf_counter() - wall
            self.seconds += took
            self.cpu_s += time.process_time() - cpu
            self.gpu_s += took if on_gpu else 0.0

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
            f"asked {self.requests} times ({self.cached_share:.0%} from the cache), paid {self.prompt_tokens} prompt and {self.output_tokens} output tokens, "
            f"{time_on}; replies refused: {refused}"
        )


def total(records: Iterable[Ledger | Mapping[str, Any]]) -> Ledger:
    """The sum of ledgers or of their records; keys that this version does not know are left alone."""
    out = Ledger()
    for record in records:
        values = record.record() if isinstance(record, Ledger) else record
        for name in ("requests", "cached", "prompt_tokens", "output_tokens", "seconds", "cpu_s", "gpu_s"):
            setattr(out, name, getattr(out, name) + values.get(name, 0))
        for reason, count in (values.get("rejected") or {}).items():
            out.rejected[reason] = out.rejected.get(reason, 0) + count
    return out


def append(root: Path, stage: str, part: tuple[int, int] | None, ledger: Ledger) -> None:
    """Add a line to the part's file: one write, so that a killed run leaves whole lines."""
    name = stage + (f"@{part[0]}-of-{part[1]}" if part else "")
    path = root / ".run" / "ledger" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(ledger.record(), sort_keys=True).encode() + b"\n")


def read(root: Path) -> dict[str, Ledger]:
    """Per stage the sum over its parts and tries in this run; a line cut off by a crash is passed over."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((root / ".run" / "ledger").glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                lines.setdefault(path.stem.partition("@")[0], []).append(json.loads(line))
            except ValueError:
                continue
    return {stage: total(records) for stage, records in lines.items()}


def cost(stages: Mapping[str, Ledger], *, triplets: int, pairs: int) -> dict[str, Any]:
    """version.json's `ledger`: per stage its sums, and what one of this run's accepted triplets took. Empty without a
    ledger.
    """
    if not stages:
        return {}
    whole = total(stages.values())
    each = (
        {
            n: round(getattr(whole, n) / triplets, 4)
            for n in ("requests", "prompt_tokens", "output_tokens", "cpu_s", "gpu_s")
        }
        if triplets
        else {}
    )
    sums = {s: {**ledger.record(), "cached_share": round(ledger.cached_share, 4)} for s, ledger in stages.items()}
    return {"stages": sums, "per_triplet": each, "triplets": triplets, "pairs": pairs}
