"""What a stage cost: wall and CPU seconds, GPU seconds, and energy where the machine measures it. Beside the run, never
versioned.

CPU seconds are the process's and its children's; GPU seconds are wall seconds times the GPUs in use. Energy comes from
counters of the machine
as a whole, so it is an upper bound where others work on it too: RAPL packages (/sys/class/powercap, often readable by
root alone) and NVML (nvidia-smi's library, through the package nvidia-ml-py, where it is installed).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


def rapl_joules(root: Path = RAPL) -> dict[str, tuple[float, float]]:
    """Package -> (energy counter, its range), J; empty where none is readable."""
    found = {}
    for zone in sorted(root.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") == 1:  # packages; their parts are counted in them
            try:
                found[zone.name] = tuple(
                    int((zone / f).read_text()) / 1e6 for f in ("energy_uj", "max_energy_range_uj")
                )
            except (OSError, ValueError):
                continue
    return {name: (float(now), float(span)) for name, (now, span) in found.items()}


def rapl_used(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> float | None:
    """Energy between two readings, J, over a counter's wrap too (one wrap at most); None where none is readable."""
    both = [name for name in before if name in after]
    return sum((after[n][0] - before[n][0]) % (after[n][1] or 1e12) for n in both) if both else None


def gpu_joules() -> float | None:
    """Energy counters of all visible NVIDIA GPUs, J since the driver was loaded; None without GPU or nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
        return float(sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(h) for h in handles)) / 1e3
    except pynvml.NVMLError:
        return None


class Meter:
    """Starts counting when it is made."""

    def __init__(self) -> None:
        self._start, self._times = time.monotonic(), self._cpu()
        self._rapl, self._gpu = rapl_joules(), gpu_joules()

    @staticmethod
    def _cpu() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in usages)

    def read(self) -> dict[str, Any]:
        """{"wall_s", "cpu_s", "gpus", "gpu_s", "energy_j"} since the start; energy_j is None where nothing measures it."""
        wall = time.monotonic() - self._start
        torch = sys.modules.get("torch")
        gpus = 0
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            gpus = int(os.environ.get("WORLD_SIZE", "1"))
        parts = [rapl_used(self._rapl, rapl_joules())]
        now = gpu_joules()
        if self._gpu is not None and now is not None:
            parts.append(now - self._gpu)
        known = [p for p in parts if p is not None]
        return {
            "wall_s": round(wall, 1),
            "cpu_s": round(self._cpu() - self._times, 1),
            "gpus": gpus,
            "gpu_s": round(wall * gpus, 1),
            "energy_j": round(sum(known), 1) if known else None,
        }

    def write(self, path: Path) -> None:
        """Write `read()` as JSON. Where processes of one stage wrote before (torchrun's), their GPUs are kept: the
        launcher itself uses none.
        """
        cost = self.read()
        if path.exists():
            cost["gpus"] = max(cost["gpus"], json.loads(path.read_text())["gpus"])
            cost["gpu_s"] = round(cost["wall_s"] * cost["gpus"], 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        aside.write_text(json.dumps(cost) + "\n")
        os.replace(aside, path)
