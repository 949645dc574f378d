"""Measure the shipped checkpoints on held-out scenes and write `checkpoints/REPORT.md` and `checkpoints/curves.png`.

    python -m tasks.sample.evaluate [--pairs 600] [--questions 2400]

Everything is measured on the saved float16 weights, loaded through the Auto classes, on scenes that no training saw
(the split 'benchmark' of `scenes.split_of`). About three minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tasks.sample import phrases, train_clip, train_dino, train_judge, train_vlm, train_writer
from tasks.sample.common import held_out_pairs
from tasks.sample.scenes import Scene, difference, draw
from tasks.sample.tokens import CHECKPOINTS

SHIPPED = (
    "## How the shipped weights came about, and what was learnt on the way",
    "Each but the judge by one run of its command. The judge's five stages were run one after another, each from the float16",
    "checkpoint of the one before (the command does the same in one go; that it gives the same weights was not tried).",
    "- Visual tokens left stage A at a root mean square of 4.7 beside text embeddings of 0.04: two pictures were never compared.",
    "  `train_vlm.even_out` scales the connector between the stages. With it, and the text's loss alone: 0.56 / 0.19 exact on",
    "  one-edit / two-edit pairs after 2,200 steps, shape edits 0 of 37.",
    "- The throw-away head `train_vlm.Comparing` asks of every cell what the text says of one: 0.96 / 0.86 after 1,500 steps.",
    "- judge, four layers, yes or no alone: close to chance. With each phrase's truth as a second task: AUC 0.62 after 150 steps;",
    "  with each word's, and the right texts predicted: 0.70 after 150, 0.79 after 450. Two layers on top: 0.92 after 700 more,",
    "  of right texts about shapes 16% accepted, about colours 96%; hence the third stage.",
    "  Of the demo's mined negatives, mostly four to eight edits away, 3.5% fitted a text and were not seen: the fourth stage brought",
    "  that to 2.7%, the fifth to 0.7% (at 0.7), for 0.88 -> 0.78 of right texts accepted at 6%.",
    "- clip: with the end token at id 2 transformers pools at the highest-numbered token, so a text was read no further than one word of it",
    "  (a third of one caption form gave one and the same vector). With the end token at id 6, the same 480 steps: loss 0.13 instead of",
    "  1.21; a text tower fitted to 700 families' instructions for 150 steps, pictures locked, reached mAP@5 0.55 where it had stopped at 0.22.",
    "- dino: without DINOv2's KoLeo term the pictures fell into clusters (median nearest cosine 1.0000) and mining got worse with training;",
    "  with it, of the 1,600 nearest of 32,000 candidate pairs 67% lie within three edits instead of 36%.",
    "- What did not help: two threads in one process beside other work (an eighth of the speed; two processes of one thread keep",
    "  two thirds); torch.compile (940 ms a step against 990); training the writer on long texts from the start (10% exact after",
    "  700 steps; one-edit texts first: 98 to 100% after 1,000).",
)
MODELS = ("clip", "dino", "vlm", "judge", "writer")


def describe_shares(texts: Sequence[str], pairs: Sequence[tuple[Scene, Scene]]) -> dict[str, Any]:
    """Shares of descriptions that are exactly right, by number of edits, and of one-edit pairs by kind of edit."""
    by_count: dict[int, list[bool]] = {}
    change_only: dict[int, list[bool]] = {}
    by_kind: dict[str, list[bool]] = {}
    for (s, t), text in zip(pairs, texts, strict=True):
        gold, edits = phrases.describe(s, t), difference(s, t)
        by_count.setdefault(len(edits), []).append(text == gold)
        change_only.setdefault(len(edits), []).append(text.split("change: ")[-1] == gold.split("change: ")[-1])
        if len(edits) == 1:
            by_kind.setdefault(edits[0].kind, []).append(text == gold)
    return {
        "exact": {n: round(float(np.mean(v)), 3) for n, v in sorted(by_count.items())},
        "change_exact": {n: round(float(np.mean(v)), 3) for n, v in sorted(change_only.items())},
        "pairs": {n: len(v) for n, v in sorted(by_count.items())},
        "one_edit_by_kind": {k: f"{sum(v)}/{len(v)}" for k, v in sorted(by_kind.items())},
    }


def measure_all(folder: Path, *, pairs: int, questions: int) -> dict[str, Any]:
    """The figures of REPORT.md, from the checkpoints under `folder`."""
    out: dict[str, Any] = {"mib": {m: round(_size(folder / m) / 2**20, 2) for m in MODELS}}
    processor = AutoProcessor.from_pretrained(folder / "vlm")
    vlm = AutoModelForImageTextToText.from_pretrained(folder / "vlm", dtype=torch.float32).eval()
    held = held_out_pairs(pairs, seed=91)
    images = [(draw(s, rendering=1), draw(t, rendering=2)) for s, t in held]
    out["vlm"] = describe_shares(train_vlm.write_descriptions(vlm, processor, images), held)
    out["vlm"]["caption_exact"] = caption_share(vlm, processor, [s for s, _ in held[:200]])
    judge = AutoModelForImageTextToText.from_pretrained(folder / "judge", dtype=torch.float32).eval()
    packer = train_judge.Packer(judge, processor)
    mistakes = train_judge.own_errors(vlm, processor, held_out_pairs(2 * pairs, 92), random.Random(92))
    asked = train_judge.held_out_questions(questions, 93, mistakes)
    out["judge"] = train_judge.figures(asked, packer.score(asked)) | {
        "own_errors": len(mistakes),
        "questions": len(asked),
    }
    words = AutoTokenizer.from_pretrained(folder / "writer")
    out["writer"] = train_writer.measure(
        AutoModelForCausalLM.from_pretrained(folder / "writer", dtype=torch.float32), words
    )
    clip = AutoModel.from_pretrained(folder / "clip", dtype=torch.float32)
    out["clip"] = train_clip.measure(clip, AutoProcessor.from_pretrained(folder / "clip"))
    out["dino"] = train_dino.measure(AutoModel.from_pretrained(folder / "dino", dtype=torch.float32))
    return out


@torch.no_grad()
def caption_share(model: Any, processor: Any, scenes: Sequence[Scene]) -> float:
    """Share of single images captioned exactly as `phrases.caption` words them."""
    ids = torch.tensor([train_vlm.question(1, train_vlm.tokens.prompt("caption"), processor)])
    right = 0
    for i in range(0, len(scenes), 50):
        part = scenes[i : i + 50]
        inputs = ids.repeat(len(part), 1)
        values = train_vlm.pixels([draw(s, rendering=1) for s in part])[:, None]
        made = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), pixel_values=values, max_new_tokens=64
        )
        texts = processor.tokenizer.batch_decode(made[:, inputs.shape[1] :], skip_special_tokens=True)
        right += sum(text.strip() == phrases.caption(scene) for text, scene in zip(texts, part, strict=True))
    return round(right / len(scenes), 3)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def plot(curves: Path, image: Path) -> None:
    """Draw each model's loss (log scale, grey) and its measured shares (0 to 1, coloured) over steps, one panel a
    model.
    """
    colours = [(31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207)]
    wide, high, edge, names = 640, 260, 34, 150
    files = sorted(curves.glob("*.jsonl"))
    sheet = Image.new("RGB", (2 * wide, high * ((len(files) + 1) // 2)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, file in enumerate(files):
        left, top = wide * (number % 2) + edge, high * (number // 2) + edge
        w, h = wide - 2 * edge - names, high - 2 * edge
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if "step" not in row:
                continue
            # the judge's stages are steps of one curve; the describer's A and B start anew
            prefix = f"{row['stage']} " if isinstance(row.get("stage"), str) else ""
            for key, value in _numbers(row):
                series.setdefault(prefix + key, []).append((row["step"], value))
        most = max((x for line in series.values() for x, _ in line), default=1)
        pen.rectangle((left, top, left + w, top + h), outline=(180, 180, 180))
        pen.text(
            (left, top - 24),
            f"{file.stem}: steps 0 to {most:.0f}; shares 0 to 1, loss log 0.001 to 10 (grey)",
            fill="black",
        )
        for i, (name, line) in enumerate(sorted(series.items())):
            is_loss = name.endswith("loss")
            colour = (150, 150, 150) if is_loss else colours[i % len(colours)]
            points = []
            for x, y in line:
                level = (np.log10(max(y, 1e-3)) + 3) / 4 if is_loss else min(1.0, max(0.0, y))
                points.append((left + w * x / most, top + h * (1 - level)))
            pen.line(points, fill=colour, width=2)
            pen.text((left + w + 8, top + 4 + 12 * i), name, fill=colour)
    sheet.quantize(32).save(image, optimize=True)


def _numbers(row: dict[str, Any]) -> list[tuple[str, float]]:
    out = []
    for key, value in row.items():
        if key in ("step", "samples", "labels", "cpu_s", "stage"):
            continue
        if isinstance(value, dict):
            value = value.get("true_yes")
        if isinstance(value, list):
            value = value[-1]
        if isinstance(value, int | float):
            out.append((key, float(value)))
    return out


def report(figures: dict[str, Any]) -> str:
    """REPORT.md as Markdown."""
    vlm, judge, clip, dino = figures["vlm"], figures["judge"], figures["clip"], figures["dino"]
    low, high = judge[f"at_{train_judge.LOW}"], judge[f"at_{train_judge.HIGH}"]
    sizes = figures["mib"]
    exact = " / ".join(
        f"{vlm['exact'][n]:.3f} ({n} edit{'s' if n > 1 else ''}, {vlm['pairs'][n]} pairs)" for n in vlm["exact"]
    )
    lines = [
        "# The tiny checkpoints: what they reach, and how that was measured",
        "",
        "Made by `python -m tasks.sample.evaluate` from the saved float16 weights, loaded through the Auto classes. Every scene",
        "measured on is of the split `benchmark` (`scenes.split_of`, a hash of the scene's content), which no training saw. Trained",
        "on two shared x86 cores, from scratch; no weights from elsewhere.",
        "",
        f"Sizes in MiB: {', '.join(f'{m} {s}' for m, s in sizes.items())}; together {sum(sizes.values()):.1f} (bar: at most 25).",
        "",
        "## vlm: describe two pictures (bar: exact on >= 0.85 of one-edit and >= 0.50 of two-edit pairs; aim 0.90 / 0.60)",
        f"- the whole description exactly right: {exact}",
        f"- the changes alone exactly right: {' / '.join(f'{v:.3f}' for v in vlm['change_exact'].values())} (1 / 2 / 3 edits)",
        f"- one-edit pairs by kind: {', '.join(f'{k} {v}' for k, v in vlm['one_edit_by_kind'].items())}",
        f"- captions of one picture exactly right: {vlm['caption_exact']:.3f}",
        "",
        "## judge: does the picture fit the instruction (bar: true-yes >= 0.75 at false-yes <= 0.06; aim 0.85 at 0.03)",
        f"{judge['questions']} questions, half of them right (all or some of the edits, five styles); the wrong half near misses in equal",
        "parts: a relative one edit off the target, the query itself, the describer's own wrong texts",
        f"({judge['own_errors']} different ones, drawn with repetition).",
        f"- AUC {judge['auc']}",
        f"- **threshold {high['threshold']}**: true-yes {high['true_yes']} at false-yes {train_judge.HIGH}",
        f"- threshold {low['threshold']}: true-yes {low['true_yes']} at false-yes {train_judge.LOW}",
        f"- yes by kind of case at false-yes {train_judge.HIGH}: "
        + ", ".join(f"{k} {v}" for k, v in judge[f"yes_by_kind_at_{train_judge.HIGH}"].items()),
        "",
        "The threshold is set on the same questions as it is reported on (two numbers chosen among thousands of scores).",
        "",
        "## writer: description to instruction, written exactly (bar: names copied exactly in >= 0.99)",
        f"- {', '.join(f'{k} {v}' for k, v in figures['writer'].items())} (200 held-out descriptions a style)",
        "",
        "## clip: pictures and captions (plain on purpose: no instruction was seen)",
        "400 held-out queries, a gallery of 800 pictures; recall at 1 and 10.",
        f"- {', '.join(f'{k} {v}' for k, v in clip.items())}",
        "",
        "## dino: pictures alone",
        f"- nearest neighbour is of the same family in {dino['neighbour_of_family']} of 480 pictures of 120 families; mean cosine"
        f" between any two {dino['mean_cosine']}",
        "",
        *SHIPPED,
        "",
        "## Training curves",
        "![curves](curves.png)",
        "",
        "The numbers behind it are `curves/<model>.jsonl`. The captions' text encoder is clip's text tower.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m tasks.sample.evaluate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=CHECKPOINTS)
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--questions", type=int, default=2400)
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    figures = measure_all(options.folder, pairs=options.pairs, questions=options.questions)
    print(json.dumps(figures, indent=1))
    plot(options.folder / "curves", options.folder / "curves.png")
    (options.folder / "REPORT.md").write_text(report(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
