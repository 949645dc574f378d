"""Break the factory in every way that is known, and see whether it goes on and gives the same.

    make chaos                                     every scenario, the longest about an hour
    python -m tests.chaos --short                  without Airflow, few kills: what CI runs
    python -m tests.chaos --only kills,disk        some of them
    python -m tests.chaos --list

Prints a table and, as its last line, one JSON object: `scenarios` and, of them, `equal` and `recovered`; `kills` is the
count of processes killed. Exit code 1 unless all are equal and recovered.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.chaos.services import DISTURBANCES, EVENTS, NAMES, WEEKS, disturbed_week, events_during_a_training
from tests.chaos.stack import living_stack
from tests.chaos.stages import NO_NAMESPACE, SEED, own_mounts, stage_scenarios
from tests.chaos.week import Outcome, living_week

SHORT = ("kills", "lock")
KILLS, SHORT_KILLS = 200, 16
IMAGES, SHORT_IMAGES = 240, 40  # of the demo's second week: 260


def tell(text: str) -> None:
    """A line of the run's progress."""
    print(text, flush=True)


def attempt_week(names: Sequence[str], scenario: Callable[[], list[Outcome]]) -> list[Outcome]:
    """Run a week with disturbances; one that breaks off has for none of them recovered, nor is it equal."""
    start = time.monotonic()
    try:
        outcomes = scenario()
    except Exception as error:
        note = f"{type(error).__name__}: {error}"[:1500]
        outcomes = [Outcome(DISTURBANCES[name].title, note=note) for name in names]
        outcomes[0].seconds = time.monotonic() - start
    for name, out in zip(names, outcomes, strict=True):
        tell(f"  {name}: recovered {out.is_recovered}, equal {out.is_equal}, {out.seconds:.0f} s; {out.note}")
    return outcomes


def attempt(name: str, scenario: Callable[[], Outcome]) -> Outcome:
    """Run a scenario; one that breaks off has neither recovered nor is it equal."""
    start = time.monotonic()
    try:
        out = scenario()
    except Exception as error:
        out = Outcome(name, note=f"{type(error).__name__}: {error}"[:1500])
    out.seconds = time.monotonic() - start
    tell(f"  {name}: recovered {out.is_recovered}, equal {out.is_equal}, {out.seconds:.0f} s; {out.note}")
    return out


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    rows = ["| scenario | kills | recovered | equal | seconds | seen |", "|---|---|---|---|---|---|"]
    for out in outcomes:
        marks = ["yes" if ok else "NO" for ok in (out.is_recovered, out.is_equal)]
        note = " ".join(out.note.split()).replace("|", "/")[:160]
        rows.append(f"| {out.name} | {out.kills} | {marks[0]} | {marks[1]} | {out.seconds:.0f} | {note} |")
    return "\n".join(rows)


@contextmanager
def kept_or_temporary(folder: Path | None) -> Iterator[Path]:
    """`folder`, made here, which stays; or a temporary one, which goes with the block."""
    if folder is not None:
        folder.mkdir(parents=True)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="megapairs-chaos-") as temporary:
        yield Path(temporary)


def main(argv: list[str] | None = None) -> int:
    """Run the scenarios; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--short", action="store_true", help="without Airflow and with few kills")
    parser.add_argument("--only", help="names of scenarios, separated by commas")
    parser.add_argument("--kills", type=int, help="random kills, a count")
    parser.add_argument("--seed", type=int, default=SEED, help="that draws the random kills' moments")
    parser.add_argument("--images", type=int, help="images of the week, a count")
    parser.add_argument("--keep", type=Path, help="a new folder for all that is made; it and its logs stay")
    parser.add_argument("--expected", default="", help="fingerprint of an undisturbed week with Airflow, of this code")
    parser.add_argument("--list", action="store_true", help="print the scenarios' names")
    args = parser.parse_args(argv)
    has_mounts = own_mounts()
    on_stages = stage_scenarios(args.kills or (SHORT_KILLS if args.short else KILLS), has_mounts, args.seed)
    on_services = () if args.short else NAMES
    known = [*on_stages, *on_services]
    if args.list:
        tell("\n".join(known))
        return 0
    wanted = args.only.split(",") if args.only else [n for n in known if not args.short or n in SHORT]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        hint = f" (disk: {NO_NAMESPACE})" if "disk" in unknown and not has_mounts else ""
        parser.error(f"--only: unknown {unknown}{hint}; known: {known}")
    outcomes: list[Outcome] = []
    with kept_or_temporary(args.keep) as folder:
        if any(name in on_stages for name in wanted):
            images = args.images or (SHORT_IMAGES if args.short else IMAGES)
            (folder / "stages").mkdir()
            with living_week(folder / "stages", images) as week:
                tell(f"an undisturbed week of {images} images: {week.calls} paid calls")
                for name in (n for n in wanted if n in on_stages):
                    week.reset()
                    outcomes.append(attempt(name, lambda name=name: on_stages[name](week)))  # type: ignore[misc]
        if any(name in on_services for name in wanted):
            with living_stack(folder / "stack", args.expected) as stack:
                tell(f"an undisturbed week with Airflow: fingerprint {stack.expected}")
                for names in filter(None, (tuple(n for n in week if n in wanted) for week in WEEKS)):
                    outcomes += attempt_week(names, partial(disturbed_week, stack, names))
                if EVENTS in wanted:
                    outcomes.append(attempt(EVENTS, lambda: events_during_a_training(stack)))
    if not has_mounts and not args.short:
        tell(f"left out: disk full ({NO_NAMESPACE})")
    print(table(outcomes))
    summary = {
        "scenarios": len(outcomes),
        "equal": sum(out.is_equal for out in outcomes),
        "recovered": sum(out.is_recovered for out in outcomes),
        "kills": sum(out.kills for out in outcomes),
    }
    print(json.dumps(summary))
    return 0 if summary["equal"] == summary["recovered"] == len(outcomes) > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
