"""The commands of `python -m tasks`: one row each, which says what module does the work.

A new command is a new row here; tasks/__main__.py reads the arguments, runs it and prints what came out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Command:
    """One command of `python -m tasks`.

    Attributes:
        module: what it runs; its docstring is the command's manual. A stage or a check has `run(params, store, ...)`
            that returns a StageReport, a tool has `run_command(args)`; `add_arguments(parser)` of the module adds
            further arguments of a check or a tool.
        group: heading of the command in `python -m tasks --help`.
        summary: one line for the same list.
        kind: stage (runs under a lock, its report is saved), check (reads the worktree, saves nothing), or tool (has
            its own arguments).
        item: what the one argument of a stage is; None where it takes none.
        takes_part: whether a stage takes --part i/n.
        alone: of a stage that is a tool, too: the module with `add_arguments`, `is_asked(args)` and `run_command`.
        example: arguments of the example in `python -m tasks <command> --help`.
    """

    module: str
    group: str
    summary: str
    kind: Literal["stage", "check", "tool"] = "stage"
    example: str = ""
    item: Literal["encoder", "table"] | None = None
    takes_part: bool = False
    alone: str = ""


RUN_EXAMPLE = """--run-id monday --kind dataset --conf '{"sources": "photos", "limit": 1000}'"""

# In the order in which the factory works; `--help` lists them so.
COMMANDS = {
    "demo": Command("tasks.demo.demo", "Try it", "run the whole factory on this machine", "tool", "--profile test"),
    "production_local": Command(
        "tasks.demo.production_story", "Try it", "run both DAGs on Celery, PostgreSQL and Redis on this machine", "tool"
    ),
    "deploy": Command("tasks.publish.deployment", "Prepare", "lay out a deployment's repositories and login", "tool"),
    "doctor": Command("tasks.doctor.command", "Prepare", "look whether all is there that a run will need", "tool"),
    "calibrate": Command(
        "tasks.calibrate.command", "Prepare", "propose each encoder's similarity window", "tool", "--source photos"),
    "fit_words": Command(
        "tasks.calibrate.fit_words", "Prepare", "fit the word frequencies of an encoder of kind tfidf", "tool",
        "--out models/words"),
    "new_dataset": Command(
        "tasks.calibrate.new_dataset", "Prepare", "lay out a dataset of your own images, calibrated", "tool",
        "shop --source /data/shop"),
    "decontaminate": Command(
        "tasks.ingest.decontaminate", "Prepare", "list a benchmark's images, so that ingest leaves them out", "tool",
        "build benchmarks/circo/images --out circo.jsonl"),
    "open_run": Command(
        "tasks.publish.open_run", "Open a run", "check a run's parameters, make its worktree", "tool", RUN_EXAMPLE),
    "runs": Command(
        "tasks.publish.retention", "Open a run", "list the open runs, remove what old ones left", "tool", "--prune"
    ),
    "ingest_list": Command("tasks.ingest.listing", "Images", "list what is new in the sources, for ingest in parts"),
    "ingest_fetch": Command(
        "tasks.ingest.fetch", "Images", "fetch and decode listed files, in parts", example="--part 1/4", takes_part=True
    ),
    "ingest": Command("tasks.ingest.stage", "Images", "read the sources; filter, deduplicate and store images"),
    "recaption": Command(
        "tasks.caption.recaption", "Images", "write the captions that the sources lack", example="--part 1/4",
        takes_part=True,
    ),
    "embed": Command(
        "tasks.embed.stage", "Images", "encode new images", example="semantic", item="encoder", takes_part=True
    ),
    "mine": Command(
        "tasks.mine.stage", "Pairs", "find related pairs", example="semantic", item="encoder", takes_part=True
    ),
    "select": Command("tasks.select.stage", "Pairs", "choose the run's pairs and their hard negatives"),
    "plan": Command("tasks.caption.plan", "Triplets", "estimate requests, tokens and hours", "check", "100000"),
    "caption": Command(
        "tasks.caption.stage", "Triplets", "write instructions for each pair", example="--part 1/4", takes_part=True
    ),
    "label_draft": Command(
        "tasks.judge.label_draft", "Triplets", "draw questions for a person to label", "tool", "--out labelled/mine"
    ),
    "judge_check": Command("tasks.judge.judge_check", "Triplets", "measure the judge on the labelled set", "check"),
    "judge_calibrate": Command("tasks.calibrate.judge", "Triplets", "learn the judge's thresholds", "tool", "--write"),
    "judge": Command(
        "tasks.judge.stage", "Triplets", "verify triplets and negatives", example="--part 1/4", takes_part=True
    ),
    "reviews": Command("tasks.browse.reviews", "Triplets", "what people answered about triplets, as labels", "tool"),
    "validate": Command(
        "tasks.validate.stage", "Gates", "check a table against its expectations", example="pairs", item="table"
    ),
    "version": Command("tasks.publish.version", "Publish", "publish the run's triplets as a version"),
    "takedown": Command(
        "tasks.publish.takedown_run", "Publish", "withdraw images from the newest version, and publish that at once",
        "tool", "--reason privacy shop:photos/1.jpg",
    ),
    "renew": Command(
        "tasks.publish.renew_run", "Publish", "make rows of earlier models and prompts anew, and publish that", "tool",
        "caption --where made_before=2026-11-01 --budget 2000",
    ),
    "purge": Command(
        "tasks.publish.purge", "Publish", "delete images from all that is published; a dry run without --yes", "tool",
        "--reason illegal shop:photos/1.jpg",
    ),
    "gc": Command("tasks.publish.gc", "Publish", "remove data that no version needs; every tag stays whole", "tool"),
    "gallery": Command("tasks.pages.gallery", "Publish", "write a version's gallery page", "tool", "--root clone"),
    "verdicts": Command(
        "tasks.pages.review", "Publish", "write the review page: what was accepted or rejected, and why", "tool",
        "--root clone --count 30",
    ),
    "serve_git": Command(
        "tasks.publish.serve_git", "Publish", "serve origin.git to everybody, read-only, by HTTP", "tool",
        "--repository /data/origin.git --port 8090",
    ),
    "push_hub": Command("tasks.publish.push_hub", "Publish", "push a version to the Hub", "tool", "me/set"),
    "pull": Command("tasks.publish.pull", "Read a version", "`dvc pull` that names each faulty file", "tool", "-j 8"),
    "verify": Command("tasks.publish.verify", "Read a version", "compare a clone with its manifest", "tool"),
    "audit": Command("tasks.publish.audit", "Read a version", "look whether the remote still holds every tag", "tool"),
    "diff": Command(
        "tasks.publish.diff", "Read a version", "what changed from one version to another", "tool",
        "2026.11.21 2026.11.28 --out diff.html",
    ),
    "export": Command(
        "tasks.publish.export", "Read a version", "write triplets as Parquet with images, or as JSON lines", "tool",
        "--root clone --jsonl triplets.jsonl",
    ),
    "train": Command("tasks.train.stage", "Model", "fine-tune the retriever on a version's triplets"),
    "evaluate": Command(
        "tasks.evaluate.stage", "Model", "score a run's models, or any model, on benchmarks",
        example="--model BAAI/BGE-VL-base --benchmark circo=data/CIRCO", takes_part=True,
        alone="tasks.evaluate.command",
    ),
    "noise": Command("tasks.promote.seed_noise", "Model", "measure how much scores differ between training seeds"),
    "promote": Command("tasks.promote.stage", "Model", "publish the fine-tuned model if it is better"),
    "export_onnx": Command(
        "tasks.promote.export_onnx", "Model", "write a CLIP model for onnxruntime, checked against torch", "tool",
        "models/promoted"),
    "serve": Command(
        "tasks.studio.serve", "Model", "try the models: composed search over a version, in the browser", "tool",
        "--root clone --port 8091",
    ),
}  # fmt: skip
# A person may detach these from a terminal; every other command ends when its parent dies.
DETACHABLE = {"demo", "new_dataset", "deploy", "doctor", "runs", "label_draft", "gallery"}
DETACHABLE |= {"verdicts", "pull", "verify", "audit", "diff", "push_hub", "export", "export_onnx"}
