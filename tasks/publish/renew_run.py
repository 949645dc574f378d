"""Renew rows that an earlier model or prompt made: without waiting for the week, as a version of its own.

    python -m tasks renew recaption|caption|judge [--where CONDITIONS] [--budget N] [--dry-run]
    python -m tasks renew embed [--budget N] [--dry-run]

Opens a run that reads no source. Its stages make the stale rows anew that fit the conditions, the oldest first and at
most N of them; what depends on them follows (a pair that is described again is judged again, a triplet that no longer
passes is withdrawn and counted as `renewed`); then the version is published. Older versions stay as they are. --dry-run
says how many rows are stale and how many of them would be renewed, and changes nothing.

CONDITIONS are separated by commas, and all must hold: made_before=2026-11-01, made_after=2026-06-30,
batch=2026.11.21, and of the maker model=, revision=, writer=, writer_revision=, prompt= (for judge model=, revision=,
prompt=; for recaption source=, prompt=). An unknown one is refused by name.

`embed` goes on with the index of each encoder in `embed.next`, whatever their own budgets: N images of earlier versions
at most an encoder, in whole shards, the oldest first. The version in which an index becomes whole goes over to it.

To renew a part each week, write the same into params.yaml or into the field `renew` of Airflow's form:
{"caption": {"where": "made_before=2026-11-01", "budget": 2000}}. Rows about which people decided are never renewed.
Works on the deployment that MEGAPAIRS_DATASET and MEGAPAIRS_RUNS name.
"""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.config import Params, RenewConfig, RenewRows, load_params, parse_params, parse_where, read_raw, resolve
from tasks.errors import ConfigError
from tasks.names import batch_name
from tasks.publish.git import common_dir
from tasks.publish.makers_now import configured_maker
from tasks.publish.open_run import Deployment, RunRequest, close_run, open_run
from tasks.publish.takedown_run import Runner, add_run_arguments, driving, require_no_run, run_process, run_to_version
from tasks.renewal.encoders import count_next
from tasks.renewal.makers import MADE
from tasks.renewal.plan import Wish, choose_plan, wanted
from tasks.renewal.units import both_directions, renewable_units, rows_of_file
from tasks.reviews.verdicts import read_verdicts
from tasks.store import Store


@dataclass(frozen=True)
class Renewal:
    """What became of a renewal: the tag that it published (None: none), and a sentence a stage."""

    version: str | None
    notes: tuple[str, ...]


def check_wish(stage: str, where: str, budget: int | None, lost_share_max: float = 0.5) -> RenewRows:
    """What is asked for, checked before a run is opened.

    Raises:
        ConfigError: a condition that is not understood, a budget below 1, or a share that is none.
    """
    try:
        parse_where(where, stage)
    except ValueError as error:
        raise ConfigError(f"--where: {error}") from error
    if budget is not None and budget < 1:
        raise ConfigError(f"--budget: found {budget}; expected a count of at least 1, or none for all")
    if not 0 <= lost_share_max <= 1:
        raise ConfigError(f"--lost-share-max: found {lost_share_max}; expected a share from 0 to 1")
    return RenewRows(where=where, budget=budget, lost_share_max=lost_share_max)


def run_values(stage: str, rows: RenewRows) -> dict[str, Any]:
    """The form's values of a run that renews this and nothing else, and reads no source."""
    others: dict[str, Any] = dict.fromkeys(RenewConfig.model_fields)
    return {"ingest.sources": [], "renew": {**others, stage: rows.model_dump()}}


def embed_values(clone: Path, where: str, budget: int | None) -> dict[str, Any]:
    """The form's values of a run that goes on with the next encoders' indexes and reads no source.

    Args:
        clone: of the deployment; its params.yaml names the encoders.
        where: conditions, of which there are none for vectors.
        budget: most earlier images an encoder, a count; None for all.
    Raises:
        ConfigError: conditions, a budget below 1, or no encoder in `embed.next`.
    """
    if where:
        raise ConfigError(f"--where: found '{where}'; `renew embed` takes none: it encodes the oldest shards first")
    check_wish("caption", "", budget)
    raw = read_raw(clone / "params.yaml")
    roles = sorted(parse_params(resolve(raw, str(raw["profile"]), {})).embed.next or {})
    if not roles:
        raise ConfigError(
            f"{clone / 'params.yaml'}: embed.next names no encoder; name the one to change to, with its window "
            "(docs/how-to/encoder.md), then run `renew embed` again"
        )
    nothing: dict[str, Any] = dict.fromkeys(RenewConfig.model_fields)
    return {"ingest.sources": [], "renew": nothing, "embed": {"next": {role: {"budget": budget} for role in roles}}}


def forecast_next(params: Params, store: Store, role: str) -> str:
    """What a run would encode for the encoder that is to follow a role's."""
    budget, found = (params.embed.next or {})[role].budget, count_next(store, role)  # type: ignore[index]
    most = "all" if budget is None else f"at most {budget}, in whole shards,"
    return f"embed {role}: {found['stale']} images have no vector of the next encoder, {most} would be encoded"


def forecast(params: Params, store: Store) -> list[str]:
    """What a run would renew of each stage, as far as the parameters tell who makes rows now.

    Counted are units, as the run's own plan counts them: an image, or a pair with its reversed one; what people decided
    about is none.
    """
    notes, described, batch = [], set[str](), batch_name(params)
    ends = {(verdict.query, verdict.target) for verdict in read_verdicts(store.root)}
    for stage in MADE:
        if (rows := wanted(params, stage)) is None:
            continue
        units = renewable_units(store, stage, batch, ends, described if stage == "judge" else ())
        wish = Wish.of(rows, stage, configured_maker(params, stage))
        plan = choose_plan(store, wish, stage, batch, units, rows_of_file(params, stage))
        if stage == "caption":
            described = set(both_directions(store, set(plan.units)))
        oldest = f", the oldest of {plan.batches[plan.units[0]]}" if plan.units else ""
        notes.append(f"{stage}: {len(plan.units) + plan.left} stale rows, {len(plan.units)} would be renewed{oldest}")
    return notes


def renewal_notes(params: Params, store: Store) -> list[str]:
    """What the reports of a run's stages say about renewal."""
    reports = store.read_reports()
    stages = [stage for stage in MADE if getattr(params.renew, stage) is not None]
    stages += sorted(name for name in reports if name.partition("@")[0] == "embed")
    return [note for s in stages if s in reports for note in reports[s].notes if note.startswith("renewal")]


def renew(
    deployment: Deployment, run_id: str, values: Mapping[str, Any], *, is_dry: bool = False, run: Runner = run_process
) -> Renewal:
    """Renew, and publish. A second call with the same run id goes on where the first stopped.

    Args:
        deployment: where.
        run_id: of the run that is opened.
        values: of `run_values`, with the date.
        is_dry: say what would be renewed, and stop.
        run: runs a command line of the run.
    Raises:
        ConfigError, DataError, TransientError: as the stage that failed; its worktree stays.
    """
    request = RunRequest(run_id, "dataset", {**values, "dry_run": is_dry})
    worktree = Path(open_run(request, deployment).notes[0])
    params, store = load_params(worktree / "params.yaml"), Store(worktree)
    version = None
    with driving(worktree, run_id):
        if is_dry:
            roles = sorted(params.embed.next or {})
            notes = [*forecast(params, store), *(forecast_next(params, store, role) for role in roles)]
        else:
            is_published = run_to_version(worktree, run, "renew", run_id)
            notes = renewal_notes(params, store)
            version = f"dataset/{batch_name(params)}" if is_published else None
    close_run(worktree, deployment.clone)
    return Renewal(version, tuple(notes))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks renew`."""
    parser.add_argument("stage", choices=sorted([*MADE, "embed"]), help="whose rows are made anew")
    parser.add_argument("--where", default="", metavar="CONDITIONS", help="which stale rows (default: all)")
    parser.add_argument("--budget", type=int, metavar="N", help="most rows that are renewed (default: all)")
    parser.add_argument(
        "--lost-share-max", type=float, default=0.5, metavar="SHARE", help="of the renewed rows, most that may be lost"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what is stale, change nothing")
    add_run_arguments(parser, "renewal")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Renew; {"version": tag or None, "notes": sentences}.

    Raises:
        ConfigError: a wrong argument, or another run is under way.
    """
    deployment = Deployment.from_environment()
    deployment = replace(deployment, clone=common_dir(deployment.clone).parent)
    if args.stage == "embed":
        wish = embed_values(deployment.clone, args.where, args.budget)
    else:
        wish = run_values(args.stage, check_wish(args.stage, args.where, args.budget, args.lost_share_max))
    if not (args.now or args.dry_run or args.run_id):
        require_no_run(deployment, "renew")
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    values = {**wish, "date": args.date}
    done = renew(deployment, args.run_id or f"renew__{started}", values, is_dry=args.dry_run)
    for note in done.notes:
        print(f"  {note}")
    if done.version:
        print(f"published {done.version}")
    elif not args.dry_run:
        print("nothing was stale: no version")
    return {"version": done.version, "notes": list(done.notes)}
