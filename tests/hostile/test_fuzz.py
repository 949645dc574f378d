"""Mutations of images, tars and tables: no bytes raise, hang or lose a row. The targets share FUZZ_SECONDS (60).

`make fuzz` runs for an hour, and prints how many mutations that were and the CPU time. FUZZ_SEED (0) says where the
seeds begin: with another number a further run looks at other mutations than those before.
Hypothesis chooses and shrinks the mutations; atheris is not used (docs/decisions/0064).
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.ingest.normalize import configure_decoders, normalize_image
from tasks.ingest.rules import NormalizationRules, NormalizedImage
from tasks.reasons import REASONS
from tasks.sources.counts import ListingCounts
from tasks.sources.files import FileRejected
from tasks.sources.open import list_files
from tests.hostile import forms

TARGETS = 3
SECONDS = float(os.environ.get("FUZZ_SECONDS", "60")) / TARGETS
FIRST_SEED = int(os.environ.get("FUZZ_SEED", "0"))  # of the first round; the same seeds give the same mutations
EXAMPLES = 100  # between two looks at the clock
RULES = NormalizationRules(max_pixels=4_000_000)  # a header may state much: decoded in this process, without limits
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "zero", "repeat", "swap"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.integers(1, 600),
    ),
    min_size=1,
    max_size=5,
)


def mutate(content: bytes, mutations: list[tuple[str, float, int, int]]) -> bytes:
    """The bytes, changed; half of the places lie in the first kibibyte, where the headers are."""
    out = bytearray(content)
    for number, (kind, share, value, length) in enumerate(mutations):
        reach = len(out) if number % 2 else min(len(out), 1024)
        place = int(share * reach)
        if kind == "cut":
            del out[place : place + length]
        elif kind == "insert":
            out[place:place] = bytes([value]) * length
        elif kind == "repeat":
            out[place:place] = out[place : place + length]
        elif kind == "zero":
            out[place : place + length] = bytes(len(out[place : place + length]))
        elif kind == "swap":
            out[place : place + 4] = out[place : place + 4][::-1]
        elif place < len(out):
            out[place] = value if kind == "set" else out[place] ^ (1 << value % 8)
    return bytes(out)


def fuzz(bases: list[bytes], check: Callable[[bytes], None], seconds: float = SECONDS) -> int:
    """Check mutations of these files until the time is over; returns how many, and prints it (seen with `-rP`)."""
    end_s, rounds, checked, start_cpu_s = time.monotonic() + seconds, 0, 0, time.process_time()
    while time.monotonic() < end_s:

        @seed(FIRST_SEED + rounds)
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(base=st.sampled_from(bases), mutations=MUTATIONS)
        def mutated(base: bytes, mutations: list[tuple[str, float, int, int]]) -> None:
            nonlocal checked
            if time.monotonic() < end_s:
                checked += 1
                check(mutate(base, mutations))

        mutated()
        rounds += 1
    seeds, cpu_s = f"{FIRST_SEED} to {FIRST_SEED + rounds - 1}", time.process_time() - start_cpu_s
    print(f"{checked} mutations of {len(bases)} files, seeds {seeds}, {cpu_s:.0f} CPU-seconds")
    return checked


@pytest.mark.slow
def test_no_mutation_of_an_image_raises():
    configure_decoders()

    def check(content: bytes) -> None:
        result = normalize_image(content, is_named_image=True, rules=RULES)
        if isinstance(result, NormalizedImage):
            assert max(result.width_px, result.height_px) <= RULES.max_side_px and result.content[:2] == b"\xff\xd8"
            assert b"Exif" not in result.content[:400]
        else:
            assert result.reason in REASONS["ingest"]

    assert fuzz([make() for make in forms.encoders().values()], check) > 0


def read_all(path: Path) -> None:
    """List a source to its end and read every file: nothing but FileRejected and DataError may come out."""
    counts, listed = ListingCounts(), 0
    source = SourceConfig(name="f", path=str(path), contact="me@example.org")
    try:
        for file in list_files(source, lambda _: False, counts):
            listed += 1
            assert "\n" not in file.uri and file.uri.isprintable()
            if file.is_remote:
                continue
            try:
                assert len(file.read(1 << 20)) <= 1 << 20
            except FileRejected as rejected:
                assert rejected.reason in REASONS["ingest"]
    except DataError as error:
        assert str(error) and "this is a bug" not in str(error)
        return
    assert counts.captions == counts.matched + counts.unmatched
    if path.suffix != ".tar":
        assert counts.rows == listed + counts.repeated_rows


@pytest.mark.slow
def test_no_mutation_of_a_tar_raises():
    with tempfile.TemporaryDirectory() as folder:

        def check(content: bytes) -> None:
            (Path(folder) / "x.tar").write_bytes(content)
            read_all(Path(folder) / "x.tar")

        assert fuzz([case.content for case in forms.tar_cases()], check) > 0


@pytest.mark.slow
def test_no_mutation_of_a_table_raises_or_loses_a_row():
    with tempfile.TemporaryDirectory() as folder:
        bases: dict[bytes, str] = {case.content: Path(case.name).suffix for case in forms.table_cases()}

        def check_as(suffix: str) -> Callable[[bytes], None]:
            def check(content: bytes) -> None:
                path = Path(folder) / f"x{suffix}"
                path.write_bytes(content)
                read_all(path)

            return check

        suffixes = sorted(set(bases.values()))
        for suffix in suffixes:
            contents = [content for content, of in bases.items() if of == suffix]
            assert fuzz(contents, check_as(suffix), SECONDS / len(suffixes)) > 0
