"""Lay out a dataset of one's own: a deployment with its own versions, parameters and calibrated windows.

    python -m tasks new-dataset shop --source /data/shop [--profile demo] [--root FOLDER] [--limit 2000]
    make ui DATASET=shop SOURCE=/data/shop           the same, and opens it in Airflow

Calibrates on the folder first (as `python -m tasks calibrate`), so that a folder that cannot be read leaves nothing.
Then makes origin.git, the DVC remote, the deployment's clone and the cache below the root (default .datasets/NAME), and
commits to its branch `main`: the dataset's name, the source, the profile, each encoder's window and the floor of
captions. A run of dataset_refresh with an empty form then does all of it. What exists already is left as it is.

A dataset is a deployment, not a parameter of one: versions add up, gates compare with the version before, a takedown
list and a promoted model belong to one collection of images (docs/decisions/0125).
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.calibrate.command import calibrate_folder, profile_with_windows
from tasks.calibrate.distribution import QUERIES, Quantiles
from tasks.calibrate.folder import params_for_folder
from tasks.calibrate.params_file import set_values, set_windows
from tasks.config import Window, read_raw, resolve
from tasks.errors import ConfigError
from tasks.publish.deployment import configure_deployment
from tasks.publish.git import git
from tasks.store.atomic import write_bytes

PROJECT = Path(__file__).resolve().parents[2]
NAME = r"[A-Za-z0-9][A-Za-z0-9.-]*"  # as MEGAPAIRS_DATASETS takes it (plugins/megapairs/wiring.py)


@dataclass(frozen=True)
class NewDataset:
    """A dataset to be laid out.

    Attributes:
        name: of the dataset and of its source.
        source: the folder of its images.
        root: where its deployment will lie.
        profile: whose models are used; None: params.yaml's own.
        limit: most files that the calibration reads, a count.
        license_code, attribution: of images for which the source states none.
    """

    name: str
    source: Path
    root: Path
    profile: str | None = None
    limit: int = QUERIES
    license_code: str = "unknown"
    attribution: str = ""


def dataset_name_of(root: Path) -> str:
    """The name of the dataset that a root's deployment holds.

    Raises:
        ConfigError: there is none.
    """
    path = root / "dataset" / "params.yaml"
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["open_run"]["dataset"])
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: no deployment of a dataset; lay one out with `python -m tasks new-dataset`"
        ) from error


def write_params(
    clone: Path, wanted: NewDataset, values: Mapping[str, Any], windows: Mapping[str, Window]
) -> list[str]:
    """Write the dataset's parameters into a deployment's clone; the files that changed.

    Args:
        clone: on the branch of the deployed code.
        wanted: the dataset.
        values: of `calibrate_folder`.
        windows: encoder's role -> window.
    """
    path, profile = clone / "params.yaml", str(values["profile"])
    source = {"name": wanted.name, "path": str(wanted.source.resolve())}
    source |= {"license_code": wanted.license_code, "attribution": wanted.attribution}
    changes: dict[str, Any] = {"profile": profile, "open_run.dataset": wanted.name, "ingest.sources": [source]}
    if "validate" in values:
        changes["validate.images.caption_share_min"] = values["validate"]["images"]["caption_share_min"]
    written = {path: set_values(path.read_text(encoding="utf-8"), changes)}
    if own := profile_with_windows(path, profile):
        written[own] = set_values(set_windows(own.read_text(encoding="utf-8"), windows), {}, ("uncalibrated_windows",))
    else:
        written[path] = set_windows(written[path], windows)
    for file, content in written.items():
        write_bytes(file, content.encode())
    return [file.relative_to(clone).as_posix() for file in written]


def embedded_models(params_yaml: Path) -> str:
    """The profile of a deployment whose judge is one of the embedded checkpoints; empty for another judge."""
    raw = read_raw(params_yaml)
    resolved = resolve(raw, raw.get("profile"))
    is_embedded = str(resolved["judge"]["model"]).startswith("tasks/sample/checkpoints/")
    return str(resolved.get("profile") or "") if is_embedded else ""


def lay_out(wanted: NewDataset, checkout: Path = PROJECT) -> bool:
    """Lay a dataset's deployment out; returns whether it was made now.

    Args:
        wanted: the dataset.
        checkout: the code that it runs, a git repository with params.yaml.
    Raises:
        ConfigError: a wrong name, no such folder, or the root holds another dataset.
        DataError: too few images to calibrate on.
    """
    if not re.fullmatch(NAME, wanted.name):
        raise ConfigError(f"name {wanted.name!r}: expected letters, digits, '.' and '-', the first a letter or a digit")
    if (wanted.root / "dataset").exists():
        if (found := dataset_name_of(wanted.root)) != wanted.name:
            raise ConfigError(f"{wanted.root}: holds dataset {found!r}, not {wanted.name!r}; name another --root")
        return False
    raw = read_raw(checkout / "params.yaml")
    params = params_for_folder(raw, wanted.profile or raw.get("profile"), wanted.source, wanted.name)
    values, calibrations = calibrate_folder(params, wanted.limit, Quantiles())
    windows = {calibration.role: calibration.window for calibration in calibrations}
    root = wanted.root.resolve()
    try:
        clone = root / "dataset"
        configure_deployment(
            root / "origin.git", clone, str(root / "dvc-remote"), root / "dvc-cache", checkout=checkout
        )
        git(clone, "add", *write_params(clone, wanted, values, windows))
        git(clone, "commit", "-q", "-m", f"Dataset {wanted.name}: its source, windows and floors")
        git(clone, "push", "-q", "origin", "main")
    except BaseException:
        for name in ("origin.git", "dataset", "dvc-remote", "dvc-cache"):
            shutil.rmtree(root / name, ignore_errors=True)
        raise
    return True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks new-dataset`."""
    parser.add_argument("name", help="of the dataset")
    parser.add_argument("--source", type=Path, required=True, help="the folder of its images")
    parser.add_argument("--profile", help="whose models it uses (default: the one that params.yaml names)")
    parser.add_argument("--root", type=Path, help="where its deployment goes (default: .datasets/NAME)")
    parser.add_argument(
        "--limit", type=int, default=QUERIES, help=f"most files that the calibration reads (default {QUERIES})"
    )
    parser.add_argument("--license-code", default="unknown", help="licence of images for which none is stated")
    parser.add_argument("--attribution", default="", help="attribution of images for which none is stated")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Lay the dataset out; {"dataset", "root", "is_new"}.

    Raises:
        ConfigError, DataError: as of `lay_out`.
    """
    root = (args.root or PROJECT / ".datasets" / args.name).resolve()
    wanted = NewDataset(args.name, args.source, root, args.profile, args.limit, args.license_code, args.attribution)
    is_new = lay_out(wanted)
    print(f"dataset {args.name}: {'laid out in' if is_new else 'is already in'} {root}")
    if profile := embedded_models(root / "dataset" / "params.yaml"):
        print(
            f"note: profile {profile} has the embedded tiny models, which know drawn scenes alone. Their judge rejects "
            "nearly every pair of photographs, and a run without a triplet publishes no version. Models from the hub: "
            "--profile small and HF_HUB_OFFLINE=0 (HF_HUB_OFFLINE=0 make ui DATASET=... SOURCE=... PROFILE=small)"
        )
    if root == PROJECT / ".datasets" / args.name:
        print(f"open it: make ui DATASET={args.name}")
    print(f"beside another dataset, in that one's Airflow: MEGAPAIRS_DATASETS={args.name}={root}")
    return {"dataset": args.name, "root": str(root), "is_new": is_new}
