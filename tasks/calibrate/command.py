"""Calibrate: propose each encoder's similarity window, from a folder of images or from the embeddings that are stored.

    python -m tasks calibrate --source FOLDER [--name NAME] [--profile NAME] [--limit 2000] [--write] [--figures FOLDER]
    python -m tasks calibrate [--root WORKTREE] [--write]

With --differences or --same-content it proposes other numbers (differences.py, same_content.py). The first form is for
before any run; the second for a run's worktree, after `embed` and before `mine`.

Cosines of different encoders are distributed very differently, so a window belongs to an encoder and a corpus. With
--source the folder's images (or `limit` of them) go through ingest, recaption and embed in a temporary folder: nothing
is published, nothing stays. Without it, the worktree's data/embeddings are read. The command prints the distributions,
and as the last line the proposal as JSON: values of dataset_refresh's trigger form. --write puts all of it (windows,
the source, the captions' floor) into params.yaml, windows into the profile's file where that has its own, and leaves
the rest of the files. --figures saves what the numbers were taken from: the
distributions (random pairs, nearest, 10th nearest, and images beside near-copies made of them) as a plot and as
quantiles, and a page that shows for each encoder twenty pairs from three bands of its window. A run never calibrates
itself, so that a version's windows are fixed numbers. A thousand photographs take a minute on two cores.

low = the `low-quantile` of random pairs: at 0.99 one unrelated image in a hundred is as near, and `mine.neighbours`
takes the nearest of those above. high = the `high-quantile` of nearest neighbours (copies are gone since ingest: the
very nearest are suspicious). Where low would not lie below high, or above what half the images' neighbours reach, low
is the median of the 10th nearest.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tasks.calibrate.differences import FitSettings, fit_to_folder, write_estimate
from tasks.calibrate.distribution import (
    QUERIES,
    SHOWN_QUANTILES,
    Distribution,
    Quantiles,
    propose_window,
    sample_distribution,
)
from tasks.calibrate.examples import copy_cosines, pairs_in_bands
from tasks.calibrate.folder import embed_folder, form_values, params_for_folder
from tasks.calibrate.page import EncoderFigures, page, plots
from tasks.calibrate.params_file import set_values, set_windows
from tasks.calibrate.same_content import calibrate_same_content, read_labelled
from tasks.config import MINER_ROLES, Params, Window, is_resolved, parse_params, read_raw, resolve
from tasks.config.section import NAME_PATTERN
from tasks.errors import ConfigError
from tasks.store import Store
from tasks.store.atomic import write_bytes


@dataclass(frozen=True)
class Calibration:
    """One encoder's distribution and the window proposed from it.

    Attributes:
        role: the encoder's.
        model: its model, as params.yaml names it.
        revision: of the model.
        vectors: of the corpus, a count.
    """

    role: str
    model: str
    revision: str
    vectors: int
    distribution: Distribution
    window: Window

    def lines(self) -> list[str]:
        """The quantiles and the window, for a person."""
        lines = [f"{self.role} ({self.model}, {self.revision}): {self.vectors} vectors"]
        for name, cosines in self.distribution.by_name().items():
            if len(cosines):
                quantiles = "  ".join(f"q{q:g} {np.quantile(cosines, q):.4f}" for q in SHOWN_QUANTILES)
                lines.append(f"  {name:13}{quantiles}")
        low, high = self.window.low, self.window.high
        inside = self.distribution.nearest_inside(self.window)
        lines.append(
            f"  window        low {low:.4f}, high {high:.4f}: {inside:.0%} of the images have their nearest inside"
        )
        return lines

    def record(self, quantiles: Quantiles) -> dict[str, Any]:
        """The same as JSON values, for calibration.json."""
        quantile_values = {
            name: {f"q{q:g}": round(float(np.quantile(cosines, q)), 6) for q in SHOWN_QUANTILES}
            for name, cosines in self.distribution.by_name().items()
            if len(cosines)
        }
        return {
            "low_quantile": quantiles.low,
            "high_quantile": quantiles.high,
            "vectors": self.vectors,
            "revision": self.revision,
            "window": {"low": self.window.low, "high": self.window.high},
            "nearest_inside": round(self.distribution.nearest_inside(self.window), 6),
            "quantiles": quantile_values,
        }


def calibrate(params: Params, store: Store, quantiles: Quantiles, figures: Path | None = None) -> list[Calibration]:
    """Calibrate every encoder from the stored embeddings; prints the distributions.

    Args:
        figures: folder to save in: quantiles (calibration.json), the plot (calibration.svg) and a page of pairs
            (pairs.html); nothing is saved where None.
    Raises:
        DataError: fewer than three vectors.
    """
    calibrations: list[Calibration] = []
    encoder_figures: list[EncoderFigures] = []
    for role in (r for r in MINER_ROLES if r in params.embed.encoders):
        spec = params.embed.encoders[role]
        ids, vectors, revision = store.read_embeddings(role)
        distribution = sample_distribution(vectors, params.open_run.seed)
        window = propose_window(distribution, quantiles)
        if figures is not None:
            distribution = replace(distribution, copies=copy_cosines(params, store, role, ids, vectors))
            seed, is_text = params.open_run.seed, spec.kind != "image"
            pairs = pairs_in_bands(store, ids, vectors, window, seed, with_captions=is_text)
            inside = distribution.nearest_inside(window)
            name = f"{spec.model}, {revision}"
            encoder_figures.append(EncoderFigures(role, name, window, distribution.by_name(), inside, pairs))
        calibration = Calibration(role, spec.model, revision, len(vectors), distribution, window)
        print("\n".join(calibration.lines()))
        calibrations.append(calibration)
    if figures is not None:
        save_figures(figures, calibrations, encoder_figures, quantiles)
    return calibrations


def save_figures(
    folder: Path, calibrations: Sequence[Calibration], encoders: Sequence[EncoderFigures], quantiles: Quantiles
) -> None:
    """Write calibration.json, calibration.svg and pairs.html."""
    record = {calibration.role: calibration.record(quantiles) for calibration in calibrations}
    write_bytes(folder / "calibration.json", json.dumps(record, indent=1).encode())
    write_bytes(folder / "calibration.svg", plots(encoders).encode())
    write_bytes(folder / "pairs.html", page(encoders).encode())
    print(f"saved: {folder}/calibration.json, calibration.svg, pairs.html")


def write_values(path: Path, profile: str | None, values: Mapping[str, Any], windows: Mapping[str, Window]) -> None:
    """Put the proposal into params.yaml, after checking the result: windows, source, caption floor.

    Windows go into the profile's file where the profile has its own, which would hide those of params.yaml.

    Args:
        path: of params.yaml.
        profile: whose models the windows are for.
        values: of the trigger form, besides the windows.
        windows: encoder's role -> window.
    """
    changes: dict[str, Any] = {}
    if "sources" in values:
        changes["ingest.sources"] = values["sources"]
    if "validate" in values:
        changes["validate.images.caption_share_min"] = values["validate"]["images"]["caption_share_min"]
    text, written = path.read_text(encoding="utf-8"), {}
    if own := profile_with_windows(path, profile):
        written[own] = set_values(set_windows(own.read_text(encoding="utf-8"), windows), {}, ("uncalibrated_windows",))
    else:
        text = set_windows(text, windows)
    written[path] = set_values(text, changes) if changes else text
    parse_params(resolve(yaml.safe_load(written[path])), where=str(path))
    for file, content in written.items():
        write_bytes(file, content.encode())
    where = f"mine.windows to {own}" if own else "mine.windows"
    print(f"written to {path}: {', '.join([where, *changes])}")


def profile_with_windows(path: Path, profile: str | None) -> Path | None:
    """The profile's file beside params.yaml, where that profile has windows of its own; None where it has none.

    Raises:
        ConfigError: it has, but no file there.
    """
    if "windows" not in (read_raw(path).get("profiles", {}).get(profile) or {}).get("mine", {}):
        return None
    file = path.parent / "tasks" / "profiles" / f"{profile}.yaml"
    if not file.is_file():
        raise ConfigError(
            f"{path}: profile '{profile}' has mine.windows of its own, which would hide what --write changes, and "
            f"{file} is not there; run in the project's root, or put the numbers into that profile by hand"
        )
    return file


def calibrate_folder(
    params: Params, limit: int, quantiles: Quantiles, figures: Path | None = None
) -> tuple[dict[str, Any], list[Calibration]]:
    """Calibrate on the one source of `params`, in a temporary folder: the trigger form's values without windows, and
    what each encoder's window was taken from.

    Args:
        params: of `params_for_folder`.
        limit: most files read, a count.
        quantiles: where the bounds lie.
        figures: as of `calibrate`.
    """
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        store = Store(folder)
        values = form_values(params, embed_folder(params, store, limit))
        return values, calibrate(params, store, quantiles, figures)


def calibrate_differences(args: argparse.Namespace, raw: dict[str, Any], profile: str | None) -> dict[str, Any]:
    """Fit the estimate of differences to labelled pairs of a folder's images, and write it.

    Raises:
        ConfigError: no --source, or --most below 1.
        DataError: labels that cannot be read, or too few of them.
    """
    if not args.source or args.most < 1:
        raise ConfigError(
            f"calibrate --differences: --source is {args.source} and --most {args.most}; expected the folder of the "
            "images that the labels name, and at least 1"
        )
    params = params_for_folder(raw, profile, args.source, args.name)
    settings = FitSettings(args.most, args.others_differ, args.judged)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        store = Store(folder)
        embed_folder(params, store, args.limit)
        content = fit_to_folder(params, store, args.differences, settings)
    write_estimate(args.out, content)
    return content


def propose_same_content(args: argparse.Namespace, raw: dict[str, Any], profile: str | None) -> dict[str, Any]:
    """Propose `select.same_content_min` from a folder of images or the stored ones, and write it with --write.

    Raises:
        ConfigError: --false-share is none.
        DataError: labels that cannot be read, or fewer than three images.
    """
    if not 0 <= args.false_share < 1:
        raise ConfigError(f"calibrate --same-content: --false-share is {args.false_share}; expected 0 to below 1")
    labels = read_labelled(Path(args.same_content)) if args.same_content else {}
    path = args.root / "params.yaml"
    if args.source:
        params = params_for_folder(raw, profile, args.source, args.name)
        with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
            store = Store(folder)
            embed_folder(params, store, args.limit, images_only=True)
            values = calibrate_same_content(params, store, labels, args.false_share)
    else:
        params = parse_params(resolve(raw, profile), where=str(path))
        values = calibrate_same_content(params, Store(args.root), labels, args.false_share)
    if args.write and values:
        text = set_values(path.read_text(encoding="utf-8"), {f"select.{k}": v for k, v in values["select"].items()})
        parse_params(resolve(yaml.safe_load(text)), where=str(path))
        write_bytes(path, text.encode())
        print(f"written to {path}: select.same_content_min")
    print(json.dumps(values))
    return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks calibrate`."""
    parser.add_argument(
        "--root",
        type=Path,
        default=Path("."),
        help="the run's worktree, or where params.yaml lies (default: the current folder)",
    )
    parser.add_argument(
        "--source", type=Path, help="a folder of images, with captions.csv or captions.parquet if there is one"
    )
    parser.add_argument(
        "--profile", help="of params.yaml: whose models embed (default: the one that params.yaml names)"
    )
    parser.add_argument(
        "--limit", type=int, default=QUERIES, help=f"most files of the source read, a count (default {QUERIES})"
    )
    parser.add_argument("--name", help="name of the source (default: made from the folder's name)")
    parser.add_argument(
        "--write",
        action="store_true",
        help="put all that is proposed into params.yaml; windows into the profile's file where it has its own",
    )
    parser.add_argument(
        "--figures",
        type=Path,
        help="a folder for the plot, its numbers and a page of pairs from three bands of each window",
    )
    parser.add_argument(
        "--differences",
        type=Path,
        metavar="PAIRS.CSV",
        help="with --source: fit the estimate of how many things differ to these labelled pairs, and nothing else",
    )
    parser.add_argument(
        "--others-differ", action="store_true", help="a mined pair that PAIRS.CSV does not name differs in more"
    )
    parser.add_argument(
        "--judged", type=int, default=0, help="pairs that describer, writer and judge are asked about, a count"
    )
    parser.add_argument(
        "--most", type=int, default=3, help="most differences that the describing model can say, a count (default 3)"
    )
    parser.add_argument(
        "--same-content",
        nargs="?",
        const="",
        metavar="PAIRS.CSV",
        help="propose select.same_content_min, and nothing else; PAIRS.CSV names pairs that show the same or not",
    )
    parser.add_argument(
        "--false-share", type=float, default=0.01, help="most nearest others that the limit takes for the same, 0..1"
    )
    parser.add_argument("--out", type=Path, default=Path("differences.json"), help="the estimate's file")
    defaults = Quantiles()
    parser.add_argument("--low-quantile", type=float, default=defaults.low, help="of random pairs, 0..1")
    parser.add_argument("--high-quantile", type=float, default=defaults.high, help="of nearest neighbours, 0..1")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Propose the windows; the values of the trigger form.

    Raises:
        ConfigError: a wrong argument, or a params.yaml that --write cannot change.
        DataError: too few images.
    """
    path = args.root / "params.yaml"
    raw = read_raw(path)
    profile = args.profile or (None if is_resolved(raw) else raw.get("profile"))
    quantiles = Quantiles(args.low_quantile, args.high_quantile)
    if not (0 <= quantiles.low <= 1 and 0 <= quantiles.high <= 1):
        raise ConfigError(f"calibrate: quantiles {quantiles.low}, {quantiles.high}; expected 0..1")
    if args.limit < 3:
        raise ConfigError(f"--limit {args.limit}: expected at least 3")
    if args.name and not re.fullmatch(NAME_PATTERN, args.name):
        raise ConfigError(f"--name {args.name!r}: expected letters, digits, '_', '.' and '-', the first no sign")
    if args.same_content is not None:
        return propose_same_content(args, raw, profile)
    if args.write:
        profile_with_windows(path, profile)  # before the work, not after it
    if args.differences:
        return calibrate_differences(args, raw, profile)
    values: dict[str, Any] = {}
    if args.source:
        params = params_for_folder(raw, profile, args.source, args.name)
        values, calibrations = calibrate_folder(params, args.limit, quantiles, args.figures)
    else:
        params = parse_params(resolve(raw, profile), where=str(path))
        calibrations = calibrate(params, Store(args.root), quantiles, args.figures)
    windows = {calibration.role: calibration.window for calibration in calibrations}
    if args.write:
        write_values(path, profile, values, windows)
    print("values of dataset_refresh's trigger form, or of its Configuration JSON:")
    values |= {f"window_{role}": {"low": w.low, "high": w.high} for role, w in windows.items()}
    print(json.dumps(values))
    return values
