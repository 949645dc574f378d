"""Render the measured results of the checkpoints: `checkpoints/REPORT.md` and `checkpoints/curves.png`.

The prose of the report is here, its figures come from tasks/sample/evaluate.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tasks.sample.train_judge import HIGH, LOW

TRAINING_NOTES = """\
## How the shipped weights were trained, and what was learnt

All but vlm and judge by one run of their command. The judge's five stages were run one after another, each from the
float16 checkpoint of the one before (the command does the same in one run; that it gives the same weights was not
tried). Of vlm's stage C 450 steps were run from the checkpoint of stage B with seed 0, and 2,000 from that one with
seed 1, its rate rising and falling again (C2 in the curve); the command's default is one stage C of 2,400.

- vlm: stage A left visual tokens at a root mean square of 4.7, against text embeddings of 0.04: two images were never
  compared. `train_vlm.rescale_connector` scales the connector between the stages. With it, and the text loss alone:
  0.56 / 0.19 exact on one-edit / two-edit pairs after 2,200 steps, shape edits 0 of 37.
- vlm: the auxiliary head `train_vlm.ComparisonHead` predicts for every cell what the text states about one:
  0.96 / 0.86 after 1,500 steps.
- vlm: families alone (0.95 / 0.85 / 0.53) left it blind to mixes that only neighbours of different families have: of 39
  mined pairs with one object gone and another one new none was right, and pairs with four edits and more were described
  as two or three. Stage C, 450 steps with related scenes and the reply `too different`, from the weights of stage B: of
  700 mined pairs 0.996 / 0.80 / 0.48 right with one, two and three edits (0.98 / 0.79 / 0.12 before, on all 2,748), and
  0.95 / 0.99 of those with five / more edits called too different.
- vlm: 450 steps of stage C were too few: 0.96 / 0.88 / 0.60 on held-out families and 0.99 / 0.81 / 0.48 on related
  scenes. After 2,000 more 0.99 / 0.96 / 0.86 and 0.99 / 0.97 / 0.81, and 1.00 instead of 0.84 of those with more than
  three edits called too different (600 pairs each, one run, one seed).
- judge: trained and measured with the describer of stage B; its own errors above are of that one.
- judge: four layers, trained on yes or no alone: close to chance. With each phrase's truth as a second task: AUC 0.62
  after 150 steps; with each word's, and the right texts predicted: 0.70 after 150, 0.79 after 450. Two layers on top:
  0.92 after 700 more; of right texts about shapes 16% were accepted, about colours 96%: hence the third stage.
  Of the demo's mined negatives, mostly four to eight edits away, 3.5% fitted a text and were accepted as negatives: the
  fourth stage reduced that to 2.7%, the fifth to 0.7% (at 0.7), for 0.88 -> 0.78 of right texts accepted at 6%.
- clip: with the end token at id 2, transformers pools at the token with the highest id, so a text was read no further
  than one of its words (a third of one caption form gave one and the same vector). With the end token at id 6, the same
  480 steps: loss 0.13 instead of 1.21; a text tower fitted to 700 families' instructions for 150 steps, image tower
  frozen, reached mAP@5 0.55 instead of 0.22.
- dino: without DINOv2's KoLeo term images collapsed into clusters (median nearest cosine 1.0000) and mining got worse
  with training; with it, of the 1,600 nearest of 32,000 candidate pairs 67% lie within three edits instead of 36%.
- What did not help: two threads in one process beside other work (an eighth of the speed; two processes of one thread
  keep two thirds); torch.compile (940 ms a step against 990); training the writer on long texts from the start (10%
  exact after 700 steps; one-edit texts first: 98 to 100% after 1,000).
"""


def render_report(figures: dict[str, Any]) -> str:
    """REPORT.md as Markdown.

    Args:
        figures: of `evaluate.measure_all`.
    """
    vlm, judge, clip, dino = figures["vlm"], figures["judge"], figures["clip"], figures["dino"]
    low, high = judge[f"at_{LOW}"], judge[f"at_{HIGH}"]
    sizes = figures["mib"]
    exact = " / ".join(
        f"{vlm['exact'][n]:.3f} ({n} edit{'s' if n > 1 else ''}, {vlm['pairs'][n]} pairs)" for n in vlm["exact"]
    )
    change_exact = " / ".join(f"{v:.3f}" for v in vlm["change_exact"].values())
    return f"""\
# The tiny checkpoints: measured results

Written by `python -m tasks.sample.evaluate` from the saved float16 weights, loaded through the Auto classes. All scenes
are of the split `benchmark` (`scenes.assign_split`, a hash of the scene's content), which is never trained on.
Trained from scratch on two shared x86 cores; no weights from elsewhere. "Bar" is what a checkpoint must reach, "aim"
what was hoped for.

Sizes in MiB: {_join(sizes)}; together {sum(sizes.values()):.1f} (bar: at most 25).

## vlm: describe two images

Bar: changes exactly right on >= 0.97 / 0.90 / 0.80 of the pairs with 1 / 2 / 3 edits.

- whole description exactly right: {exact}
- changes alone exactly right: {change_exact} (1 / 2 / 3 edits)
- one-edit pairs by kind: {_join(vlm["one_edit_by_kind"])}
- related scenes with any mix of changes, as across families, changes exactly right (more than three edits: called too
  different): {_join(vlm["related"])}
- captions of one image exactly right: {vlm["caption_exact"]:.3f}

## judge: does the image fit the instruction

Bar: true-yes >= 0.75 at false-yes <= 0.06; aim 0.85 at 0.03.

{judge["questions"]} questions, half of them right (all or some of the edits, five styles); the wrong half near misses
in equal parts: another member of the family one edit off the target, the query itself, the describer's own wrong texts
({judge["own_errors"]} different ones, drawn with repetition).

- AUC {judge["auc"]}
- **threshold {high["threshold"]}**: true-yes {high["true_yes"]} at false-yes {HIGH}
- threshold {low["threshold"]}: true-yes {low["true_yes"]} at false-yes {LOW}
- yes by kind of question at false-yes {HIGH}: {_join(judge[f"yes_by_kind_at_{HIGH}"])}

The threshold is chosen on the same questions that it is reported on (two numbers chosen among thousands of scores).

## writer: description to instruction

Bar: names copied exactly in >= 0.99.

- instructions written exactly: {_join(figures["writer"])} (200 held-out descriptions per style)

## clip: images and captions

Trained on captions only, not on instructions. 400 held-out queries, a gallery of 800 images; recall at 1 and 10.

- {_join(clip)}

## dino: images alone

- the nearest neighbour is of the same family for {dino["neighbour_of_family"]} of 480 images of 120 families
- mean cosine between any two images: {dino["mean_cosine"]}

{TRAINING_NOTES}
## Training curves

![curves](curves.png)

The numbers are in `curves/<model>.jsonl`. The captions' text encoder is clip's text tower.
"""


def _join(values: dict[str, Any]) -> str:
    """`name value` of each, separated by commas."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def plot_curves(curves: Path, image: Path) -> None:
    """Draw each model's loss (log scale, grey) and measured shares (0 to 1, coloured) over steps, one panel per model.

    Args:
        curves: folder of <model>.jsonl.
        image: PNG to write.
    """
    colours = [(31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207)]
    panel_width, panel_height, margin, legend_width = 640, 260, 34, 150
    files = sorted(curves.glob("*.jsonl"))
    sheet = Image.new("RGB", (2 * panel_width, panel_height * ((len(files) + 1) // 2)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, file in enumerate(files):
        left, top = panel_width * (number % 2) + margin, panel_height * (number // 2) + margin
        w, h = panel_width - 2 * margin - legend_width, panel_height - 2 * margin
        series = _read_series(file)
        last_step = max((x for line in series.values() for x, _ in line), default=1)
        pen.rectangle((left, top, left + w, top + h), outline=(180, 180, 180))
        pen.text(
            (left, top - 24),
            f"{file.stem}: steps 0 to {last_step:.0f}; shares 0 to 1, loss log 0.001 to 10 (grey)",
            fill="black",
        )
        for i, (name, line) in enumerate(sorted(series.items())):
            is_loss = name.endswith("loss")
            colour = (150, 150, 150) if is_loss else colours[i % len(colours)]
            points = []
            for x, y in line:
                level = (np.log10(max(y, 1e-3)) + 3) / 4 if is_loss else min(1.0, max(0.0, y))
                points.append((left + w * x / last_step, top + h * (1 - level)))
            pen.line(points, fill=colour, width=2)
            pen.text((left + w + 8, top + 4 + 12 * i), name, fill=colour)
    sheet.quantize(32).save(image, optimize=True)


def _read_series(file: Path) -> dict[str, list[tuple[float, float]]]:
    """Name of a figure -> its (step, value) points in a training curve."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in map(json.loads, file.read_text().splitlines()):
        if "step" not in row:
            continue
        # the judge's stages are steps of one curve; the describer's start again at 0
        prefix = f"{row['stage']} " if isinstance(row.get("stage"), str) else ""
        for key, value in _numbers(row):
            series.setdefault(prefix + key, []).append((row["step"], value))
    return series


def _numbers(row: dict[str, Any]) -> list[tuple[str, float]]:
    """The figures of one record that are drawn: of several values the last, of a threshold its true-yes rate."""
    numbers = []
    for key, value in row.items():
        if key in ("step", "samples", "labels", "cpu_s", "stage"):
            continue
        if isinstance(value, dict):
            value = value.get("true_yes")
        if isinstance(value, list):
            value = value[-1]
        if isinstance(value, int | float):
            numbers.append((key, float(value)))
    return numbers
