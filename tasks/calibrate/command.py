"""Calibrate: propose each encoder's similarity window, from a folder of images or from the embeddings that are stored.

    python -m tasks calibrate --source FOLDER [--profile NAME] [--limit 2000] [--write] [--figures FOLDER]     before any run
    python -m tasks calibrate [--root WORKTREE] [--write]                                   of a run, after `embed`, before `mine`

Cosines of different encoders are distributed very differently, so a window belongs to an encoder and a corpus. With
--source the folder's images (or `limit` of them) go through ingest, recaption and embed in a temporary folder: nothing
is published, nothing stays. Without it, reads the worktree's data/embeddings. Prints both distributions, and as the
last line the proposal as JSON: values of dataset_refresh's trigger form. --write puts the numbers in params.yaml,
`mine.windows`, the rest of the file untouched. --figures saves what the numbers were taken from: the distributions
(random pairs, nearest, 10th nearest, and images beside near-copies made of them) as a plot and as quantiles, and a page
that shows for each encoder twenty pairs from three bands of its window. A run never calibrates itself, so that a
version's windows are numbers. A thousand photographs take a minute on two cores.

low = the `low-quantile` of random pairs: at 0.99 one stranger in a hundred is as near, and `mine.neighbours` takes the
nearest of those above. high = the `high-quantile` of nearest neighbours (copies are gone since ingest: what is nearest
of all is suspicious). Where low would not lie below high, or above what half the images' neighbours reach, low is the
median of the 10th nearest.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tasks.calibrate.page import EncoderFigures, PairImages, band_pairs, page, plots
from tasks.config import ENCODER_ROLES, Params, Window, is_resolved, overlay, parse_params, read_raw, resolve
from tasks.errors import ConfigError, DataError
from tasks.knn.search import neighbours_in_window
from tasks.knn.spec import SearchSpec
from tasks.names import batch_name, run_date
from tasks.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

RANDOM_PAIRS = 200_000
QUERIES = 2_000  # images whose neighbours are looked at
NEIGHBOURS = 10
SHOWN = (0.01, 0.5, 0.9, 0.99, 0.995, 0.999)
COPIED = 60  # images that near-copies are made of
SHOWN_QUERIES, SHOWN_NEIGHBOURS = 500, 200  # what the page's pairs are drawn from
SIDE_BY_SIDE = 50  # files of a folder taken in one go, a count
T = TypeVar("T")


@dataclass(frozen=True)
class Distribution:
    """Cosines of a corpus under one encoder, sorted: random pairs, nearest neighbours, 10th nearest, images and their
    known near-copies.
    """

    random: np.ndarray
    nearest: np.ndarray
    tenth: np.ndarray
    copies: np.ndarray = field(default_factory=lambda: np.zeros(0))


def distribution(vectors: np.ndarray, seed: int = 0) -> Distribution:
    """Sample the cosines of a corpus.

    Args:
        vectors: (n, d) float16, rows of unit length.
        seed: of the sample.
    Raises:
        DataError: fewer than three rows.
    """
    n = len(vectors)
    if n < 3:
        raise DataError(f"calibrate: {n} vectors; at least 3 are needed to see a distribution")
    rng = np.random.default_rng(seed)
    a = rng.integers(0, n, RANDOM_PAIRS)
    b = (a + rng.integers(1, n, RANDOM_PAIRS)) % n  # never the row itself
    random = np.concatenate(
        [
            np.einsum(
                "md,md->m", vectors[a[s : s + 20_000]].astype(np.float32), vectors[b[s : s + 20_000]].astype(np.float32)
            )
            for s in range(0, RANDOM_PAIRS, 20_000)
        ]
    )
    rows = np.sort(rng.permutation(n)[:QUERIES])
    k = min(NEIGHBOURS, n - 1)
    best = np.full((len(rows), k), -2.0, np.float32)
    for start in range(0, n, 65_536):  # (queries, block) at a time
        block = vectors[start : start + 65_536].astype(np.float32)
        scores = vectors[rows].astype(np.float32) @ block.T
        own = np.flatnonzero((rows >= start) & (rows < start + len(block)))
        scores[own, rows[own] - start] = -2.0
        best = -np.sort(-np.concatenate([best, scores], axis=1), axis=1)[:, :k]
    return Distribution(np.sort(random), np.sort(best[:, 0]), np.sort(best[:, -1]))


def propose(found: Distribution, *, low_quantile: float, high_quantile: float) -> tuple[float, float]:
    """Window (low, high), rounded to 4 decimals: see the module's text."""
    high = min(float(np.quantile(found.nearest, high_quantile)), 1.0)
    low = float(np.quantile(found.random, low_quantile))
    if low >= min(high, float(np.median(found.nearest))):
        low = float(np.median(found.tenth))
    low = min(low, high - 0.0002)
    return round(low, 4), round(high, 4)


def with_windows(text: str, windows: dict[str, tuple[float, float]]) -> str:
    """params.yaml's text with `mine.windows` replaced, all other lines as they were.

    Raises:
        ConfigError: no `windows:` below `mine:`.
    """
    lines = text.split("\n")
    try:
        mine = next(n for n, line in enumerate(lines) if line.rstrip() == "mine:")
        start = next(n for n, line in enumerate(lines[mine + 1 :], mine + 1) if line.startswith("  windows:"))
    except StopIteration:
        raise ConfigError("params.yaml: no block 'windows:' below 'mine:'; add `mine:\\n  windows: {}`") from None
    if any(line[:1].strip() for line in lines[mine + 1 : start]):
        raise ConfigError("params.yaml: no block 'windows:' below 'mine:'; add `mine:\\n  windows: {}`")
    end = start + 1
    while end < len(lines) and lines[end].startswith("   "):
        end += 1
    block = [
        "  windows:",
        *(f"    {role}: {{low: {low:.4f}, high: {high:.4f}}}" for role, (low, high) in windows.items()),
    ]
    return "\n".join(lines[:start] + block + lines[end:])


# --- a folder of images, before any run -----------------------------------------------------------------------------


def spread(files: Sequence[T], limit: int, run: int = SIDE_BY_SIDE) -> list[T]:
    """At most `limit` files, in runs of neighbours spread evenly over all: relatives often lie side by side, strangers
    far apart.

    Args:
        files: in order of path.
        limit: most files, a count.
        run: files side by side, a count.
    """
    if len(files) <= limit:
        return list(files)
    run = min(run, limit)
    starts = np.linspace(0, len(files) - run, limit // run).astype(int)
    return [files[n] for start in starts.tolist() for n in range(start, start + run)]


def embed_folder(params: Params, store: Store, limit: int) -> dict[str, float]:
    """Take in the images of the one source, write the captions that are missing, embed with every encoder.

    Args:
        params: with one source in ingest.sources, and the run's date.
        store: an empty one.
        limit: most files looked at, a count.
    Returns:
        ingest's figures.
    Raises:
        ConfigError: no such folder.
        DataError: fewer than three images in it.
    """
    from tasks.caption import recaption
    from tasks.embed import stage as embed
    from tasks.ingest import stage as ingest
    from tasks.sources.open import list_files

    source, batch = params.ingest.sources[0], batch_name(params)
    files = list(list_files(source))
    ingest.ingest_files(spread(files, limit), params, store)
    report = ingest.build_report(store, batch)
    left = ", ".join(f"{count} {reason}" for reason, count in sorted(report.dropped.items())) or "none"
    print(
        f"{source.path}: {len(files)} files, {report.read} looked at, {report.written} images, dropped: {left}",
        flush=True,
    )
    if report.written < 3:
        raise DataError(
            f"{source.path}: {report.written} images among {report.read} files; at least 3 are needed to see a distribution"
        )
    recaption.run(params, store)
    for role in params.embed.encoders:
        embed.run(params, store, role)
    return report.figures


# --- the command line -------------------------------------------------------------------------------------------------


def of_source(raw: dict[str, Any], profile: str | None, folder: Path) -> Params:
    """Parameters with the folder as the only source, and today's date."""
    from tasks.config import expand_sources

    params = parse_params(
        resolve(
            raw,
            profile,
            {"ingest": {"sources": expand_sources(str(folder.resolve()), [])}, "open_run": {"limit": None}},
        )
    )
    return parse_params(
        overlay(params.model_dump(by_alias=True), {"open_run": {"date": run_date(params), "batch": None}})
    )


def near_copies_of(image: Image) -> list[Image]:
    """Known near-copies: re-encoded at quality 50, at 0.6 of its size, 3% cropped all round."""
    from PIL import Image as images

    out = io.BytesIO()
    image.save(out, "JPEG", quality=50)
    width, height = image.size
    small = image.resize((max(1, round(0.6 * width)), max(1, round(0.6 * height))))
    cropped = image.crop(
        (round(0.03 * width), round(0.03 * height), width - round(0.03 * width), height - round(0.03 * height))
    )
    return [images.open(io.BytesIO(out.getvalue())).convert("RGB"), small, cropped]


def copy_cosines(params: Params, store: Store, role: str, ids: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Cosines of stored images and their known near-copies, sorted; none for a text encoder.

    Args:
        ids: (n) of the corpus.
        vectors: (n, d) float16, theirs.
    """
    from tasks.models.encoders.load import load_encoder

    spec = params.embed.encoders[role]  # type: ignore[index]
    if spec.kind == "text":
        return np.zeros(0)
    rows = np.sort(np.random.default_rng(params.open_run.seed).permutation(len(ids))[:COPIED])
    model = load_encoder(spec, params.embed.device, params.open_run.threads)
    made = [near_copies_of(store.read_image(ids[n])) for n in rows]
    of = np.repeat(rows, [len(m) for m in made])
    return np.sort(
        np.einsum("md,md->m", vectors[of].astype(np.float32), model.encode_images([c for m in made for c in m]))
    )


def pairs_in_bands(
    store: Store, ids: Sequence[str], vectors: np.ndarray, window: Window, seed: int, *, with_captions: bool = True
) -> list[list[PairImages]]:
    """Pairs over three bands of a window, with images and, where wanted, captions: drawn from all that a sample of the
    queries has inside it.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(ids))[:SHOWN_QUERIES])
    query, target, similarity, _ = neighbours_in_window(
        vectors[rows],
        vectors,
        [ids[n] for n in rows],
        ids,
        SearchSpec(window, SHOWN_NEIGHBOURS),
    )
    captions = store.captions() if with_captions else {}

    def pair(n: int) -> PairImages:
        a, b = ids[rows[query[n]]], ids[target[n]]
        images = store.read_image(a), store.read_image(b)
        return PairImages(float(similarity[n]), *images, captions.get(a, ""), captions.get(b, ""))

    return [[pair(n) for n in band] for band in band_pairs(rows[query], target, similarity, window, seed=seed)]


def proposals(
    params: Params, store: Store, *, low_quantile: float, high_quantile: float, figures: Path | None = None
) -> dict[str, tuple[float, float]]:
    """Window per encoder from the stored embeddings; prints what it was taken from, and saves it in `figures`: the
    quantiles (calibration.json), the plot (calibration.svg) and pairs to look at (pairs.html)."""
    windows: dict[str, tuple[float, float]] = {}
    saved: dict[str, Any] = {}
    encoders: list[EncoderFigures] = []
    for role in (r for r in ENCODER_ROLES if r in params.embed.encoders):
        ids, vectors, revision = store.read_embeddings(role)
        found = distribution(vectors, params.open_run.seed)
        windows[role] = propose(found, low_quantile=low_quantile, high_quantile=high_quantile)
        low, high = windows[role]
        if figures is not None:
            found = replace(found, copies=copy_cosines(params, store, role, ids, vectors))
        model = f"{params.embed.encoders[role].model}, {revision}"  # type: ignore[index]
        print(f"{role} ({model}): {len(vectors)} vectors")
        values = {
            "random pairs": found.random,
            "nearest": found.nearest,
            "10th nearest": found.tenth,
            "near-copies": found.copies,
        }
        for name, some in values.items():
            if len(some):
                print(f"  {name:13}" + "  ".join(f"q{q:g} {np.quantile(some, q):.4f}" for q in SHOWN))
        inside = float(np.mean((found.nearest >= low) & (found.nearest < high)))
        print(f"  window        low {low:.4f}, high {high:.4f}: {inside:.0%} of the images have their nearest inside")
        if figures is not None:
            window = Window(low=low, high=high)
            is_text = params.embed.encoders[role].kind == "text"  # type: ignore[index]
            pairs = pairs_in_bands(store, ids, vectors, window, params.open_run.seed, with_captions=is_text)
            encoders.append(EncoderFigures(role, model, window, values, inside, pairs))
            quantiles = {
                n: {f"q{q:g}": round(float(np.quantile(v, q)), 6) for q in SHOWN} for n, v in values.items() if len(v)
            }
            stated = {
                "low_quantile": low_quantile,
                "high_quantile": high_quantile,
                "vectors": len(vectors),
                "revision": revision,
            }
            saved[role] = {
                **stated,
                "window": {"low": low, "high": high},
                "nearest_inside": round(inside, 6),
                "quantiles": quantiles,
            }
    if figures is not None:
        store.write_bytes(figures / "calibration.json", json.dumps(saved, indent=1).encode())
        store.write_bytes(figures / "calibration.svg", plots(encoders).encode())
        store.write_bytes(figures / "pairs.html", page(encoders).encode())
        print(f"saved: {figures}/calibration.json, calibration.svg, pairs.html")
    return windows


def source_values(params: Params, figures: dict[str, float]) -> dict[str, Any]:
    """The form's values of a run over the source, beside the windows; says so where captions are fewer than the gate
    wants.
    """
    source = params.ingest.sources[0]
    values: dict[str, Any] = {"profile": params.profile, "sources": [{"name": source.name, "path": source.path}]}
    share, floor = figures.get("caption_share", 1.0), params.validate_.images.caption_share_min
    if share < floor:
        print(
            f"captions: {share:.0%} of the images have one, the images gate wants {floor:.0%} (validate.images.caption_share_min); the values below say 0"
        )
        values["validate"] = {"images": {"caption_share_min": 0}}
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
        "--limit", type=int, default=QUERIES, help=f"most files of the source looked at, a count (default {QUERIES})"
    )
    parser.add_argument("--write", action="store_true", help="put the windows in params.yaml")
    parser.add_argument(
        "--figures",
        type=Path,
        help="a folder for the plot, its numbers and a page of pairs from three bands of each window",
    )
    parser.add_argument("--low-quantile", type=float, default=0.99, help="of random pairs, 0..1")
    parser.add_argument("--high-quantile", type=float, default=0.995, help="of nearest neighbours, 0..1")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Print the proposals; the values of the trigger form.

    Raises:
        ConfigError: a wrong argument, or a params.yaml that --write cannot change.
        DataError: too few images.
    """
    quantiles = {"low_quantile": args.low_quantile, "high_quantile": args.high_quantile}
    saving = {"figures": args.figures}
    path = args.root / "params.yaml"
    raw = read_raw(path)
    profiles = raw.get("profiles") or {}
    profile = args.profile or (None if is_resolved(raw) else raw.get("profile"))
    if not all(0 <= q <= 1 for q in quantiles.values()):
        raise ConfigError(f"calibrate: quantiles {args.low_quantile}, {args.high_quantile}; expected 0..1")
    if args.limit < 3:
        raise ConfigError(f"--limit {args.limit}: expected at least 3")
    if args.write and "windows" in (profiles.get(profile) or {}).get("mine", {}):
        raise ConfigError(
            f"{path}: profile '{profile}' has mine.windows of its own, which would hide what --write changes; "
            f"put the numbers into tasks/profiles/{profile}.yaml by hand"
        )
    values: dict[str, Any] = {}
    if args.source:
        params = of_source(raw, profile, args.source)
        with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
            store = Store(folder)
            values = source_values(params, embed_folder(params, store, args.limit))
            windows = proposals(params, store, **quantiles, **saving)
    else:
        windows = proposals(
            parse_params(resolve(raw, profile), where=str(path)), Store(args.root), **quantiles, **saving
        )
    if args.write:
        Store(args.root).write_bytes(path, with_windows(path.read_text(encoding="utf-8"), windows).encode())
        parse_params(resolve(read_raw(path)), where=str(path))
        print(f"written to {path}: mine.windows")
    print("values of dataset_refresh's trigger form, or of its Configuration JSON:")
    values |= {f"window_{role}": {"low": low, "high": high} for role, (low, high) in windows.items()}
    print(json.dumps(values))
    return values
