"""Our training step against sentence-transformers' MultipleNegativesRankingLoss: samples a second, the same batches,
the same loss.

    python -m benchmarks.train [--dataset CLONE] [--shape vit-b-32|tiny] [--batch 8] [--negatives 3] [--repeats 3]
    [--no-memory] [--no-loader]

CLONE is a version (a clone of the demo's repository after `dvc pull`: `git clone .demo/origin.git CLONE`); without one,
triplets of drawn families of the sample world. Batches come in training order from the trainer's own `plan_steps`; each
triplet has the query image and --negatives mined ones as hard negatives (triplets that have fewer are left out, since
the peer's columns are of one length).

Both sides: one process, one thread, the same random weights of the shape, the same decoded images handed over; on the
clock are the processor and the tokenizer, forward, loss, backward, clipping at 1.0 and AdamW. Ours encodes every
distinct image of a batch once and weighs it by its copies (train.count_copies, which makes the loss the peer's). The
peer is used as its documentation says: SentenceTransformer with the checkpoint that we publish, columns (anchor =
{"image", "text"}, positive, negative_1, ..., negative_n) through its own `preprocess`, scale = 1 / temperature;
its model encodes every column. Sides alternate, each batch is seen once by both. Seconds are CPU-seconds: on a shared
machine wall time is others'.

Memory (Linux): of a child process, one step with gradient caching (train.cache_chunk) and one without; by default of
the demo's small CLIP at batch 2,048, since without caching no larger shape fits a laptop there. before_mib is what the
process holds before the step (model and the batch's pixels), peak_mib the most during it; `ratio` is of the
differences, which hold gradients and the optimiser's state too. Loader: benchmarks/loader.py.

The last line is JSON: shape, batch, hard_negatives, repeats, threads, images, unique_images and total_images (means a
batch; total is what the peer encodes), ours_samples_per_s, sentence_transformers_samples_per_s, ratio (medians over the
batches), ratio_min, loss_difference (greatest over the steps), losses, is_equal (loss_difference < 1e-3), memory,
loader_*, rss_mib.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.measure import fair_environment, parse_arguments
from benchmarks.triplets import drawn_version, examples_of
from tasks.config import TrainConfig, load_params
from tasks.store import Store
from tasks.train.batches import BatchPlan, WeightedDataset, plan_steps
from tasks.train.trainer import Trainer, build_optimizer

RATE = 1e-5
CHUNK = 64


def save_random_clip(folder: Path, shape: str) -> Path:
    """A CLIP of the shape with random weights, in the layout that we publish; the sample world's tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from tasks.models.retrievers.clip import ClipRetriever
    from tasks.sample import train_clip

    torch.manual_seed(0)
    _, processor = train_clip.build()
    ends = {k: getattr(processor.tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if shape == "vit-b-32":  # CLIPConfig's defaults are openai/clip-vit-base-patch32
        config = CLIPConfig(text_config=ends)
        processor.image_processor = CLIPImageProcessor()
    elif shape == "demo":
        config = CLIPConfig.from_pretrained("tasks/sample/checkpoints/clip")
    else:
        tower = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "projection_dim": 32,
        }
        vision = {**tower, "image_size": 96, "patch_size": 32}
        config = CLIPConfig(
            text_config={**tower, **ends, "vocab_size": len(processor.tokenizer)},
            vision_config=vision,
            projection_dim=32,
        )
    CLIPModel(config).save_pretrained(folder / "plain")
    processor.save_pretrained(folder / "plain")
    ClipRetriever(str(folder / "plain"), device="cpu").save(folder / "published")
    return folder / "published"


def seconds() -> float:
    """CPU-seconds of this process."""
    return time.process_time()


class Ours:
    """The trainer's own step."""

    def __init__(self, model: Path, config: TrainConfig) -> None:
        from tasks.models.retrievers.clip import ClipRetriever

        self.retriever = ClipRetriever(str(model), device="cpu", threads=1)
        self.trainer = Trainer(self.retriever, config, seed=0)
        self.optimizer = self.trainer.runtime.prepare(build_optimizer(self.retriever.model, config, RATE))
        self.trainer.runtime.module.train()

    def step(self, plan: BatchPlan, images: dict[str, Any], number: int) -> tuple[float, float]:
        """Loss and seconds."""
        start = seconds()
        pixels = self.retriever.preprocess([images[i] for i in plan.images])
        loss = self.trainer.step_both_towers(self.optimizer, plan, pixels, learning_rate=RATE, step=number)
        return float(loss.total.detach()), seconds() - start


class Peer:
    """sentence-transformers: MultipleNegativesRankingLoss over the columns of a batch."""

    def __init__(self, model: Path, config: TrainConfig) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        # its code is ours, from this very folder
        self.model: Any = SentenceTransformer(str(model), device="cpu", trust_remote_code=True)
        self.loss: Any = MultipleNegativesRankingLoss(self.model, scale=1 / config.temperature)
        self.optimizer = build_optimizer(self.model, config, RATE)
        self.loss.train()

    def step(self, plan: BatchPlan, images: dict[str, Any], number: int) -> tuple[float, float]:
        """Loss and seconds."""
        import torch

        start = seconds()
        columns: list[list[Any]] = [
            [{"image": images[plan.images[q]], "text": t} for q, t in zip(plan.query_image, plan.texts, strict=True)]
        ]
        # positive, query image, mined
        columns += [
            [images[plan.images[place]] for place in column] for column in zip(*plan.own_candidates, strict=True)
        ]
        features = [self.model.preprocess(column) for column in columns]
        for group in self.optimizer.param_groups:
            group["lr"] = RATE
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(features, None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(loss.detach()), seconds() - start


def compare(dataset: Path, model: Path, batch: int, negatives: int, repeats: int) -> dict[str, Any]:
    """One step more than `repeats` on both sides: the first is not timed, its loss counts."""
    import torch

    torch.set_num_threads(1)
    config = load_params("params.yaml").train.model_copy(
        update={"batch_triplets": batch, "negatives": negatives, "count_copies": True, "temperature": 0.02}
    )
    store = Store(dataset)
    found = list(
        islice(
            plan_steps([WeightedDataset(examples_of(dataset, negatives), 1.0)], config, random.Random(0)), repeats + 1
        )
    )
    images = {i: store.read_image(i) for plan in found for i in plan.images}
    sides: list[Ours | Peer] = [Ours(model, config), Peer(model, config)]
    losses: list[list[float]] = [[], []]
    took: list[list[float]] = [[], []]
    for number, plan in enumerate(found, 1):
        for side in (0, 1) if number % 2 else (1, 0):
            loss, spent = sides[side].step(plan, images, number)
            losses[side].append(loss)
            took[side].append(spent)
            print(
                f"step {number}, {'ours' if side == 0 else 'sentence-transformers'}: loss {loss:.6f}, "
                f"{spent:.2f} CPU-seconds",
                flush=True,
            )
    ours, theirs = (took[side][1:] for side in (0, 1))
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    return {
        "unique_images": round(statistics.mean(len(p.images) for p in found), 1),
        "total_images": round(statistics.mean(sum(p.copies) + len(p.texts) for p in found), 1),
        "ours_samples_per_s": round(batch / statistics.median(ours), 3),
        "sentence_transformers_samples_per_s": round(batch / statistics.median(theirs), 3),
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 2),
        "ratio_min": round(min(t / o for o, t in zip(ours, theirs, strict=True)), 2),
        "loss_difference": difference,
        "losses": [[round(x, 6) for x in side] for side in losses],
        "is_equal": difference < 1e-3,
    }


def resident_mib(peak: bool) -> float:
    """Memory of this process, MiB: now, or at most since `forget_peak`."""
    line = next(
        x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM" if peak else "VmRSS")
    )
    return round(int(line.split()[1]) / 1024, 1)


def forget_peak() -> None:
    """The peak so far (of the imports, of the pixels) is not the step's: Linux counts anew from here."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_child(dataset: Path, model: Path, batch: int, chunk: int | None, negatives: int) -> dict[str, Any]:
    """Peak memory of this process over one step of so many triplets; a version with fewer gives them several times."""
    import torch

    from tasks.train.loader import ImageLoader

    torch.set_num_threads(1)
    update = {"batch_triplets": batch, "negatives": negatives, "cache_chunk": chunk, "learn_temperature": False}
    config = load_params("params.yaml").train.model_copy(update=update)
    examples = examples_of(dataset, 0)
    examples = [replace(e) for _ in range(-(-batch // len(examples))) for e in examples]
    ours = Ours(model, config)
    plan = next(plan_steps([WeightedDataset(examples, 1.0)], config, random.Random(0)))
    pixels = ImageLoader(Store(dataset), ours.retriever.preprocess, cache_bytes=0)(plan.images)
    forget_peak()
    before, start = resident_mib(peak=False), seconds()
    loss = ours.trainer.step_both_towers(ours.optimizer, plan, pixels, learning_rate=RATE, step=1)
    return {
        "peak_mib": resident_mib(peak=True),
        "before_mib": before,
        "cpu_s": round(seconds() - start, 1),
        "images": len(plan.images),
        "loss": float(loss.total.detach()),
    }


def memory(dataset: Path, model: Path, batch: int, chunk: int | None, negatives: int) -> dict[str, Any]:
    """The same in a process of its own; `failed` where it did not come back (killed for want of memory)."""
    line = ["--child", json.dumps([str(dataset), str(model), batch, chunk, negatives])]
    done = subprocess.run([sys.executable, "-m", "benchmarks.train", *line], capture_output=True, text=True)
    return (
        json.loads(done.stdout.splitlines()[-1])
        if done.returncode == 0
        else {"failed": done.returncode, "message": done.stderr[-300:]}
    )


def memories(dataset: Path, model: Path, batch: int, chunk: int, negatives: int) -> dict[str, Any]:
    """With gradient caching against without."""
    found: dict[str, Any] = {"batch": batch, "chunk": chunk, "cached": memory(dataset, model, batch, chunk, negatives)}
    found["plain"] = memory(dataset, model, batch, None, negatives)
    if "failed" not in found["plain"] and "failed" not in found["cached"]:
        plain, cached = found["plain"], found["cached"]
        found["ratio"] = round(
            (plain["peak_mib"] - plain["before_mib"]) / max(1.0, cached["peak_mib"] - cached["before_mib"]), 2
        )
        found["loss_difference"] = abs(plain["loss"] - cached["loss"])
    print(json.dumps(found), flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, help="a version; drawn triplets where absent")
    parser.add_argument("--shape", choices=("vit-b-32", "demo", "tiny"), default="vit-b-32")
    parser.add_argument("--batch", type=int, default=8, help="triplets")
    parser.add_argument("--negatives", type=int, default=3, help="mined ones, beside the query image")
    parser.add_argument("--repeats", type=int, default=3, help="timed batches, after one that is not")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-shape", choices=("vit-b-32", "demo", "tiny"), default="demo")
    parser.add_argument("--memory-batch", type=int, default=2048, help="triplets")
    parser.add_argument("--memory-chunk", type=int, default=CHUNK, help="images or texts in one pass")
    parser.add_argument("--no-loader", action="store_true")
    parser.add_argument("--loader-batch", type=int, default=64, help="triplets, the demo's own batch")
    parser.add_argument("--loader-batches", type=int, default=6)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parse_arguments(
        parser,
        argv,
        {
            "shape": "tiny",
            "batch": 6,
            "repeats": 1,
            "memory_shape": "tiny",
            "memory_batch": 16,
            "memory_chunk": 4,
            "loader_batch": 6,
            "loader_batches": 2,
        },
    )
    if args.child:
        dataset, model, batch, chunk, negatives = json.loads(args.child)
        child = memory_child(Path(dataset), Path(model), batch, chunk, negatives)
        print(json.dumps(child), flush=True)
        return child
    with tempfile.TemporaryDirectory() as work:
        dataset = args.dataset or drawn_version(Path(work) / "drawn", max(8, args.batch))
        figures: dict[str, Any] = {
            "shape": args.shape,
            "batch": args.batch,
            "hard_negatives": args.negatives + 1,
            "repeats": args.repeats,
            "threads": 1,
        }
        figures["images"] = "version" if args.dataset else "drawn"
        if not args.no_speed:
            figures |= compare(
                dataset, save_random_clip(Path(work) / args.shape, args.shape), args.batch, args.negatives, args.repeats
            )
        if not args.no_memory:
            shape = save_random_clip(Path(work) / f"memory-{args.memory_shape}", args.memory_shape)
            figures["memory"] = {
                "shape": args.memory_shape,
                **memories(dataset, shape, args.memory_batch, args.memory_chunk, args.negatives),
            }
        if not args.no_loader:
            from benchmarks import loader_comparison

            found = loader_comparison.compare(
                dataset,
                loader_comparison.SIDE_PX,
                batch=args.loader_batch,
                negatives=args.negatives,
                batches=args.loader_batches,
            )
            figures |= {f"loader_{k}": v for k, v in found.items()}
        figures["rss_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("train")
    sys.exit(0 if main().get("is_equal", True) else 1)
