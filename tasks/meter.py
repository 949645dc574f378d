"""What a stage cost: wall and CPU seconds, GPU seconds, and energy where the machine measures it.

CPU seconds are the process's and its children's; GPU seconds are wall seconds times the GPUs in use. Energy comes from
counters of the machine as a whole, so it is an upper bound where others work on it too: RAPL packages
(/sys/class/powercap, often readable by root alone) and NVML (nvidia-smi's library, through the package nvidia-ml-py,
where it is installed). `python -m tasks <stage>` keeps the cost in .run/costs/<stage>.json, which is not versioned.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")


def rapl_joules(root: Path = RAPL) -> dict[str, tuple[float, float]]:
    """Package -> (energy counter, its range), J; empty where none is readable."""
    counters = {}
    for zone in sorted(root.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") == 1:  # a package; its parts are included in its counter
            try:
                counters[zone.name] = tuple(
                    int((zone / f).read_text()) / 1e6 for f in ("energy_uj", "max_energy_range_uj")
                )
            except (OSError, ValueError):
                continue
    return {name: (float(now), float(span)) for name, (now, span) in counters.items()}


def rapl_used(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> float | None:
    """Energy between two readings, J, over a counter's wrap too (one wrap at most); None where none is readable."""
    packages = [name for name in before if name in after]
    if not packages:
        return None
    return sum((after[name][0] - before[name][0]) % (after[name][1] or 1e12) for name in packages)


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
    """Counts wall time, CPU time and energy from the moment it is created."""

    def __init__(self) -> None:
        self._start, self._times = time.monotonic(), self._cpu()
        self._rapl, self._gpu = rapl_joules(), gpu_joules()

    @staticmethod
    def _cpu() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in usages)

    def cost(self, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """{"wall_s", "cpu_s", "gpus", "gpu_s", "energy_j"} since the start; energy_j is None where nothing measures it.

        Args:
            earlier: the cost that other processes of the same stage (torchrun's) have reported; its GPUs count,
                because the launcher itself uses none.
        """
        wall = time.monotonic() - self._start
        torch = sys.modules.get("torch")
        gpus = 0
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            gpus = int(os.environ.get("WORLD_SIZE", "1"))
        if earlier is not None:
            gpus = max(gpus, int(earlier["gpus"]))
        energies = [rapl_used(self._rapl, rapl_joules())]
        gpu_energy = gpu_joules()
        if self._gpu is not None and gpu_energy is not None:
            energies.append(gpu_energy - self._gpu)
        measured = [energy for energy in energies if energy is not None]
        return {
            "wall_s": round(wall, 1),
            "cpu_s": round(self._cpu() - self._times, 1),
            "gpus": gpus,
            "gpu_s": round(wall * gpus, 1),
            "energy_j": round(sum(measured), 1) if measured else None,
        }
