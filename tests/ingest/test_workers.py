"""A file's row does not depend on what its worker decoded before, and no memory is called by its name."""

import numpy as np
import pytest
from PIL import Image

from tasks.ingest.normalize import normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection
from tasks.ingest.workers import SPENT_MIB, ImageWorkers, Worker, WorkerDied, address_space_mib
from tests.support.images import encode


def soft(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image.convert(mode)


FILES = {
    "progressive CMYK": lambda: encode(soft(2800, 2000, "CMYK"), "JPEG", progressive=True, quality=60),
    "PNG": lambda: encode(soft(2400, 1800, "RGBA"), "PNG", compress_level=1),
    "WebP": lambda: encode(soft(2400, 1800, "RGBA"), "WEBP", method=0, quality=20),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_row_is_the_same_whatever_the_worker_decoded_before(name: str):
    """At every memory limit, from one that is too small to one that is enough."""
    content = FILES[name]()
    before = [encode(soft(w, 900, "RGB", seed=w), kind) for w, kind in ((1200, "PNG"), (1500, "WEBP"), (1400, "JPEG"))]
    answers = set()
    for memory_mib in (20, 256):
        with ImageWorkers(NormalizationRules(), count=1, memory_mib=memory_mib, cpu_s=20) as workers:
            fresh = workers.read(content, is_named_image=True)
        with ImageWorkers(NormalizationRules(), count=1, memory_mib=memory_mib, cpu_s=20) as workers:
            for other in before:
                workers.read(other, is_named_image=True)
            used, again = (workers.read(content, is_named_image=True) for _ in range(2))
        assert fresh == used == again
        assert isinstance(fresh, NormalizedImage) or fresh.reason == "too_costly", fresh
        answers.add(isinstance(fresh, NormalizedImage))
    assert answers == {True, False}, "limits on both sides of what it takes"


class FlakyWorker:
    """Answers as a worker; a used one says that a file is damaged, as decoders do that lack memory."""

    started = 0
    deaths = 0

    def __init__(self, rules: NormalizationRules, memory_mib: int, cpu_s: float) -> None:
        FlakyWorker.started += 1
        self.is_spent, self.files = False, 0

    def normalize(self, content: bytes, is_named_image: bool) -> NormalizedImage | Rejection:
        self.files += 1
        if FlakyWorker.deaths:
            FlakyWorker.deaths -= 1
            raise WorkerDied(-27)  # SIGPROF
        if self.files > 1:
            return Rejection("undecodable", "broken data stream", is_costly=content == b"large")
        return normalize_image(GOOD, is_named_image=True, rules=NormalizationRules())

    def close(self) -> None:
        self.is_spent = True


GOOD = encode(soft(100, 80, "RGB"), "PNG")


def test_a_large_file_is_tried_once_more_in_a_new_worker_a_small_one_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.ingest.workers.Worker", FlakyWorker)
    monkeypatch.setattr(FlakyWorker, "started", 0)
    with ImageWorkers(NormalizationRules(), count=1, memory_mib=420, cpu_s=20) as workers:
        assert isinstance(workers.read(b"any", is_named_image=True), NormalizedImage)
        small = workers.read(b"small", is_named_image=True)
        assert isinstance(small, Rejection) and FlakyWorker.started == 1
        assert isinstance(workers.read(b"large", is_named_image=True), NormalizedImage) and FlakyWorker.started == 2


def test_a_file_that_ran_out_of_time_is_tried_once_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.ingest.workers.Worker", FlakyWorker)
    with ImageWorkers(NormalizationRules(), count=1, memory_mib=420, cpu_s=20) as workers:
        monkeypatch.setattr(FlakyWorker, "deaths", 1)
        assert isinstance(workers.read(b"any", is_named_image=True), NormalizedImage)
        monkeypatch.setattr(FlakyWorker, "deaths", 2)
        twice = workers.read(b"any", is_named_image=True)
    assert isinstance(twice, Rejection) and twice.reason == "too_costly" and "CPU-seconds, twice" in twice.detail


def test_a_workers_address_space_stays_bounded():
    """After files that take much memory, workers are as small as at their start, or replaced."""
    big = [encode(soft(3000, 2000, "RGBA", seed=n), "PNG", compress_level=1) for n in range(2)]
    small = encode(soft(300, 200, "RGB"), "PNG")
    with ImageWorkers(NormalizationRules(), count=1, memory_mib=420, cpu_s=20) as workers:
        workers.read(small, is_named_image=True)
        start = size_mib(workers)
        for content in (*big, small):
            assert isinstance(workers.read(content, is_named_image=True), NormalizedImage)
            assert size_mib(workers) <= start + SPENT_MIB
    assert address_space_mib() > 0 and Worker.__doc__


def size_mib(workers: ImageWorkers) -> float:
    """Address space of the only worker, MiB; 0 where it has been replaced."""
    for pid in workers.pids():
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[0]) * 4096 / (1 << 20)
    return 0.0
