"""Ingest against img2dataset on the same images in memory: images per CPU-second, quality, bytes, memory.

    python -m benchmarks.ingest [--size small] [--images 200] [--repeats 3] [--folder .run/benchmarks]
    [--photos ../shared/photos] [--peer .venv-peers/bin/python]
    python -m benchmarks.ingest --size large [--images 16]

The images of `--size small`: JPEGs of 640x480 to 1600x1200 at quality 90, photographs laid side by side in their own
sharpness (enlarged ones would be soft and flatter any filter), or drawn ones where there is no folder of photographs.
Those of `--size large`: JPEGs of about 12 megapixels as cameras make them, drawn by benchmarks/camera.py.
The peer: img2dataset's own Resizer and WebDataset writer at their defaults (benchmarks/img2dataset_peer.py), in an
environment of its own, which `make bench-peers` builds.

Ours: what ingest does with each file's bytes: sha256 twice, limits, decode, check for damage, shrink, flags, perceptual
hash, thumbnail, encode, search for copies, tar, row with provenance; settings of profile `production`, through a worker
process as in a run, the CPU time of both counted. Also in one process, without the worker (`in_process`). Both are
given the same images, alternate, and the fastest of `repeats` counts: noise only adds.

Quality: PSNR, dB, of the stored images against the fully decoded source shrunk by a float Lanczos filter; the median
over the images, and the tenth percentile (`_p10`). img2dataset shrinks by OpenCV's area filter. `pillow_thumbnail`:
Pillow's `thumbnail` with its own settings, saved at quality 95 as the others are; `pillow_thumbnail_raw`: its pixels,
before any JPEG adds to its error.

The last line is JSON: size, images, kind, ours_images_per_cpu_s, in_process_images_per_cpu_s,
img2dataset_images_per_cpu_s, ratio (ours / theirs), ratio_in_process, ours_psnr_db, img2dataset_psnr_db,
pillow_thumbnail_psnr_db, pillow_thumbnail_raw_psnr_db, each also with _p10, bytes_ratio, rss_mib (peak of a worker),
img2dataset_rss_mib, img2dataset. Where the peer is not there, its keys and the ratios are null.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.camera import make_camera_images
from benchmarks.measure import fair_environment, parse_arguments
from tasks.config import Params, parse_params, read_raw, resolve
from tasks.ingest import inspect, shards
from tasks.ingest.dedup import DuplicateIndex
from tasks.ingest.normalize import normalize_image
from tasks.ingest.rows import StoredImage, image_row, shard_metadata
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection
from tasks.sources.files import Metadata, SourceFile
from tasks.store import Store

SIZES = ((640, 480), (800, 600), (1024, 768), (1280, 960), (1600, 1200))
MAX_SIDE_PX = 512
IMAGES = {"small": 200, "large": 16}
TILES = 16  # photographs between the first one of a source and that of the next
SHIFT_PX, SHIFT_PERIOD_PX = 7, 97  # to the left, for every time that the photographs were gone through
STEP = 37  # in which the photographs are mixed


def drawn(seed: int) -> Image.Image:
    """An image of blobs and texture, where there are no photographs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (400, 300), Image.Resampling.BICUBIC
    )
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 8, (300, 400, 1)), 0, 255).astype(np.uint8))


def shuffled(photos: Sequence[Path]) -> list[Path]:
    """The photographs that a benchmark's images are made of, given in order of path, mixed."""
    if math.gcd(STEP, len(photos) or 1) > 1:
        return list(photos)
    return [photos[number * STEP % len(photos)] for number in range(len(photos))]


def make_images(folder: Path, images: int, photos: Sequence[Path]) -> None:
    """Write the sources, once; made of these photographs, or drawn where there are none.

    Source n starts at photograph 16 n. Where the photographs come round again (780 of them after 195 sources), each
    round starts one photograph later and a few pixels further left, so that no two sources are the same file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources_a_round = len(photos) // math.gcd(TILES, len(photos)) if photos else images
    for n in range(images):
        path = folder / f"{n:05d}.jpg"
        if path.exists():
            continue
        width, height = SIZES[n % len(SIZES)] if n % 3 else SIZES[n % len(SIZES)][::-1]
        canvas = Image.new("RGB", (width, height))
        repeat = n // sources_a_round
        left = -(SHIFT_PX * repeat % SHIFT_PERIOD_PX)
        x, y, row, tile = left, 0, 0, 0
        while y < height:
            number = n * TILES + tile + repeat
            piece = Image.open(photos[number % len(photos)]).convert("RGB") if photos else drawn(number)
            canvas.paste(piece, (x, y))
            x, row, tile = x + piece.width, max(row, piece.height), tile + 1
            if x >= width:
                x, y, row = left, y + row, 0
        canvas.save(path, quality=90)


def lanczos_reference(image: Image.Image) -> np.ndarray:
    """(h, w, 3) float64: a decoded RGB image shrunk to the stored size by a float Lanczos filter, 0..255."""
    size = NormalizationRules(max_side_px=MAX_SIDE_PX).stored_size(*image.size)
    channels = [np.asarray(c.convert("F").resize(size, Image.Resampling.LANCZOS), np.float64) for c in image.split()]
    return np.stack(channels, axis=-1).clip(0, 255)


def psnr_db(pixels: np.ndarray, reference: np.ndarray) -> float:
    """PSNR of two (h, w, 3) arrays of levels 0..255, dB."""
    return float(10 * np.log10(255**2 / np.mean((pixels.astype(np.float64) - reference) ** 2)))


def psnr_figures(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median and tenth percentile, dB, as the last line names them."""
    return {
        f"{name}_psnr_db": round(float(np.median(values)), 2),
        f"{name}_psnr_db_p10": round(float(np.percentile(values, 10)), 2),
    }


def quality_figures(sources: dict[str, bytes], made: dict[str, dict[str, bytes]]) -> dict[str, float]:
    """PSNR of what each program stored, and of Pillow's `thumbnail`, with and without a JPEG of quality 95.

    Args:
        sources: name -> the source's JPEG.
        made: program -> name -> the stored JPEG. img2dataset does not turn images by their EXIF orientation.
    """
    values: dict[str, list[float]] = {name: [] for name in (*made, "pillow_thumbnail", "pillow_thumbnail_raw")}
    for name, content in sources.items():
        lying = lanczos_reference(Image.open(io.BytesIO(content)).convert("RGB"))
        upright = lanczos_reference(ImageOps.exif_transpose(Image.open(io.BytesIO(content)).convert("RGB")))
        for program, stored in made.items():
            pixels = np.asarray(Image.open(io.BytesIO(stored[name])).convert("RGB"))
            values[program].append(psnr_db(pixels, lying if program == "img2dataset" else upright))
        opened, out = Image.open(io.BytesIO(content)), io.BytesIO()
        opened.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
        small = opened.convert("RGB")
        small.save(out, "JPEG", quality=95)
        values["pillow_thumbnail_raw"].append(psnr_db(np.asarray(small), lying))
        values["pillow_thumbnail"].append(psnr_db(np.asarray(Image.open(out).convert("RGB")), lying))
    return {key: figure for name in values for key, figure in psnr_figures(name, values[name]).items()}


class InProcess:
    """Stands where ImageWorkers stands: the same function, without the process around it."""

    def __init__(self, rules: Any) -> None:
        self.rules = rules

    def read(self, content: bytes, *, is_named_image: bool) -> NormalizedImage | Rejection:
        return normalize_image(content, is_named_image=is_named_image, rules=self.rules)


def ours(sources: dict[str, bytes], params: Params, out: Path, workers: Any) -> dict[str, bytes]:
    """What `ingest_files` does with each file, reading left out; returns the stored images.

    Raises:
        SystemExit: one of them was refused.
    """
    shutil.rmtree(out, ignore_errors=True)
    store, config = Store(out), params.ingest
    nothing: dict[str, list[Any]] = {"image_id": [], "source_sha256": [], "phash": [], "thumbnail": []}
    index = DuplicateIndex(
        nothing,
        hash_distance_bits=config.hash_distance_bits,
        thumbnail_max=config.thumbnail_distance,
        crop_margin=config.crop_margin,
    )
    writer, stored, rows = shards.ShardWriter(store, "2026.01.04", config.shard_images), {}, []
    for name, content in sources.items():
        uri, metadata = f"memory:{name}", Metadata("a photograph")
        file = SourceFile(uri, "", metadata, "CC0-1.0", "", reader=lambda _, c=content: c)  # type: ignore[misc]
        inspected = inspect.inspect_file(file, config, workers, index.ids_by_source_sha256)
        image = inspected.result
        if not isinstance(image, NormalizedImage):
            raise SystemExit(f"ingest: {name}: {image}")
        image_id = hashlib.sha256(image.content).hexdigest()
        index.find(inspected.sha256, image_id, image)
        location = StoredImage(image_id, *writer.add(image_id, image.content, shard_metadata(file, image_id)))
        index.add(inspected.sha256, image_id, image)
        rows.append(image_row(inspected, location, "2026.01.04", "2026-01-04"))
        stored[name] = image.content
    writer.close()
    store.write(store.table_path("images", "2026.01.04"), rows, "images")
    return stored


def worker_cpu_s(pid: int) -> float:
    """CPU time that a living process has taken, s."""
    import os

    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_mib(pid: int) -> float:
    """Peak memory of a living process, MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def peer_run(peer: Path, folder: Path, out: Path) -> dict[str, Any]:
    """One measurement of img2dataset; {'reason': ...} where it cannot be run."""
    if not peer.exists():
        return {"reason": f"{peer} is not there; `make bench-peers` builds it"}
    # -P: this folder is no place to import from, select.py here would stand for the standard library's.
    command = [str(peer), "-P", str(Path(__file__).with_name("img2dataset_peer.py")), str(folder), str(out)]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={"NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    if ended.returncode:
        return {
            "reason": f"img2dataset does not run in {peer}: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}"
        }
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def make_sources(args: argparse.Namespace) -> tuple[Path, str]:
    """(folder of the source JPEGs, what they are), written where they are not there yet."""
    if args.size == "large":
        folder = args.folder / f"ingest-large-{args.images}"
        make_camera_images(folder, args.images)
        return folder, "12-MP camera-like, drawn"
    photos = shuffled(sorted(args.photos.glob("*/*.jpg")))
    kind = f"{len(photos)} photographs" if photos else "drawn"
    folder = args.folder / f"ingest-{args.images}-{'photographs' if photos else 'drawn'}"
    make_images(folder, args.images, photos)
    return folder, kind


def measure(
    sources: dict[str, bytes], folder: Path, args: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(cpu_s of ours with a worker, in process and of the peer, of the fastest repeat; the peer's answer; a worker's
    peak memory), and the stored images.
    """
    params = parse_params(resolve(read_raw(Path("params.yaml")), "production"))
    rules = inspect.normalization_rules(params.ingest)
    alone_s, with_worker_s, peer_s, peer = [], [], [], {}
    stored: dict[str, bytes] = {}
    config = params.ingest.model_copy(update={"workers": 1})
    with inspect.make_workers(config) as workers:
        ours(dict(list(sources.items())[:2]), params, args.folder / "ours", workers)
        for _ in range(args.repeats):
            start = time.process_time()
            stored = ours(sources, params, args.folder / "ours", InProcess(rules))
            alone_s.append(time.process_time() - start)
            pid = workers.pids()[0]
            start, child = time.process_time(), worker_cpu_s(pid)
            ours(sources, params, args.folder / "ours", workers)
            with_worker_s.append(time.process_time() - start + worker_cpu_s(pid) - child)
            if "reason" not in peer:
                peer = peer_run(args.peer, folder, args.folder / "peer")
                peer_s.append(peer.get("cpu_s", 0.0))
            print(
                f"ours {len(sources) / with_worker_s[-1]:.1f}/s, "
                f"in process {len(sources) / alone_s[-1]:.1f}/s, peer {peer}",
                flush=True,
            )
        rss_mib = peak_rss_mib(workers.pids()[0])
    times = {"worker_s": min(with_worker_s), "alone_s": min(alone_s), "peer_s": min(peer_s), "rss_mib": rss_mib}
    return {**times, "peer": peer}, stored


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(IMAGES), default="small", help="of the sources")
    parser.add_argument("--images", type=int, help=f"by size: {IMAGES}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(".run/benchmarks"))
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos"))
    parser.add_argument("--peer", type=Path, default=Path(".venv-peers/bin/python"))
    args = parse_arguments(parser, argv, {"images": 4, "repeats": 1})
    args.images = args.images or IMAGES[args.size]
    folder, kind = make_sources(args)
    sources = {path.stem: path.read_bytes() for path in sorted(folder.glob("*.jpg"))[: args.images]}
    print(f"{len(sources)} JPEGs, {kind}, {sum(map(len, sources.values())) / 1e6:.1f} MB", flush=True)
    taken, stored = measure(sources, folder, args)
    count, peer, made = len(sources), taken["peer"], {"ours": stored}
    figures: dict[str, Any] = {
        "size": args.size,
        "images": count,
        "kind": kind,
        "ours_images_per_cpu_s": round(count / taken["worker_s"], 1),
        "in_process_images_per_cpu_s": round(count / taken["alone_s"], 1),
        "img2dataset_images_per_cpu_s": None,
        "ratio": None,
        "ratio_in_process": None,
        "bytes_ratio": None,
        "rss_mib": round(taken["rss_mib"], 1),
        "benchmark_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "img2dataset_rss_mib": None,
        "img2dataset": None,
        "img2dataset_psnr_db": None,
        "img2dataset_psnr_db_p10": None,
    }
    if "reason" in peer:
        print(peer["reason"], flush=True)
    else:
        with tarfile.open(args.folder / "peer" / "00000.tar") as tar:
            theirs = {
                Path(m.name).stem: tar.extractfile(m).read()  # type: ignore[union-attr]
                for m in tar
                if m.name.endswith(".jpg")
            }
        made["img2dataset"] = theirs
        figures |= {
            "img2dataset_images_per_cpu_s": round(count / taken["peer_s"], 1),
            "ratio": round(taken["peer_s"] / taken["worker_s"], 3),
            "ratio_in_process": round(taken["peer_s"] / taken["alone_s"], 3),
            "bytes_ratio": round(sum(map(len, stored.values())) / sum(map(len, theirs.values())), 4),
            "img2dataset_rss_mib": peer["rss_mib"],
            "img2dataset": peer["version"],
        }
    figures |= quality_figures(sources, made)
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("ingest")
    main()
    sys.exit(0)
