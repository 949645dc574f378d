"""What a stage cost: CPU seconds are counted, energy only where a counter says so."""

import time
from pathlib import Path

from tasks.meter import Meter, rapl_joules, rapl_used


def test_cpu_seconds_are_those_that_were_worked():
    meter = Meter()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    cost = meter.cost()
    assert 0.2 <= cost["cpu_s"] <= 5 and cost["wall_s"] >= 0.2 and cost["gpus"] == 0 == cost["gpu_s"]


def test_the_launcher_keeps_the_gpus_that_its_processes_used():
    assert Meter().cost({"gpus": 4})["gpus"] == 4


def test_energy_is_read_from_packages_alone_and_over_a_wrap(tmp_path: Path):
    for zone, value in (("intel-rapl:0", 9_000_000), ("intel-rapl:0:0", 5_000_000), ("intel-rapl:1", 1_000_000)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{value}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("10000000\n")
    before = rapl_joules(tmp_path)
    assert before == {"intel-rapl:0": (9.0, 10.0), "intel-rapl:1": (1.0, 10.0)}
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2000000\n")  # past its range: 1 J up to it, 2 J after
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1500000\n")
    assert rapl_used(before, rapl_joules(tmp_path)) == 3.5
    assert rapl_used({}, {}) is None
