"""Embed a folder of images in a temporary store, before any run: what calibration needs and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tasks.caption import recaption
from tasks.config import Params, expand_sources, overlay, parse_params, resolve
from tasks.embed import stage as embed
from tasks.errors import DataError
from tasks.ingest import stage as ingest
from tasks.names import batch_name, run_date
from tasks.sources.open import list_files
from tasks.store import Store

RUN_LENGTH = 50  # files of a folder taken side by side, a count
T = TypeVar("T")


def sample_runs(files: Sequence[T], limit: int, run_length: int = RUN_LENGTH) -> list[T]:
    """At most `limit` files, in runs of adjacent ones that are spread evenly over all.

    Related images often lie side by side, unrelated ones far apart; so both are in the sample.

    Args:
        files: in order of path.
        limit: most files, a count.
        run_length: adjacent files, a count.
    """
    if len(files) <= limit:
        return list(files)
    run_length = min(run_length, limit)
    starts = np.linspace(0, len(files) - run_length, limit // run_length).astype(int)
    return [files[n] for start in starts.tolist() for n in range(start, start + run_length)]


def params_for_folder(raw: dict[str, Any], profile: str | None, folder: Path, name: str | None = None) -> Params:
    """Parameters with the folder as the only source, and today's date.

    Args:
        raw: params.yaml.
        profile: whose models embed; None where `raw` is resolved already.
        folder: of the images.
        name: of the source; made from the folder's where None.
    """
    path = str(folder.resolve())
    sources = [{"name": name, "path": path}] if name else expand_sources(path, [])
    changes = {"ingest": {"sources": sources}, "open_run": {"limit": None, "batch": None}}
    resolved = resolve(raw, profile, changes)
    date = run_date(parse_params(resolved))
    return parse_params(overlay(resolved, {"open_run": {"date": date}}))


def embed_folder(params: Params, store: Store, limit: int, *, images_only: bool = False) -> dict[str, float]:
    """Ingest the images of the one source, write the captions that are missing, embed with every encoder.

    Args:
        params: with one source in ingest.sources, and the run's date.
        store: an empty one.
        limit: most files read, a count.
        images_only: whether no caption is written, and only the encoders of images embed.
    Returns:
        ingest's figures.
    Raises:
        ConfigError: no such folder.
        DataError: fewer than three images in it.
    """
    source = params.ingest.sources[0]
    files = [file for file in list_files(source) if not file.is_litter]
    ingest.ingest_files(sample_runs(files, limit), params, store)
    report = ingest.build_report(store, batch_name(params))
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(report.dropped.items())) or "none"
    print(
        f"{source.path}: {len(files)} files, {report.read} read, {report.written} images, dropped: {dropped}",
        flush=True,
    )
    if report.written < 3:
        raise DataError(
            f"{source.path}: {report.written} images among {report.read} files; "
            "at least 3 are needed to see a distribution"
        )
    if not images_only:
        recaption.run(params, store)
    for role, spec in params.embed.encoders.items():
        if spec.kind == "image" or not images_only:
            embed.run(params, store, role)
    return report.figures


def form_values(params: Params, figures: dict[str, float]) -> dict[str, Any]:
    """The trigger form's values of a run over the source, without windows.

    Says so where captions are fewer than the images gate requires; the values then lower the gate to 0.

    Args:
        params: with one source in ingest.sources.
        figures: of ingest.
    """
    source = params.ingest.sources[0]
    values: dict[str, Any] = {"profile": params.profile, "sources": [{"name": source.name, "path": source.path}]}
    share, minimum = figures.get("caption_share", 1.0), params.validate_.images.caption_share_min
    if share < minimum:
        print(
            f"captions: {share:.0%} of the images have one, the images gate wants {minimum:.0%} "
            "(validate.images.caption_share_min); the values below say 0"
        )
        values["validate"] = {"images": {"caption_share_min": 0}}
    return values
