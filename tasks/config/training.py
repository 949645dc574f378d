"""Parameters of training, evaluation and promotion of the retrieval model."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from tasks.config.mixed_datasets import MixedDatasetConfig
from tasks.config.section import DEVICE, LOCKED_TASKS, NAME_PATTERN, PART, REVISION, Section
from tasks.config.train_options import OptimizerConfig, RefreshConfig, TeacherConfig, ValidationConfig

TEMPLATE_FIELDS = {"relative_caption", "shared_concept"}


class LoraConfig(Section):
    """LoRA adapters, section `train.lora`."""

    rank: int = Field(32, ge=1, description="Rank of the adapters, a count. MegaPairs used 32.")
    alpha: int = Field(64, ge=1, description="Scale of the adapters' output, which is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input, 0 to 1 (excluded).")
    targets: str = Field(
        "all-linear",
        description="Layers that get adapters: all-linear (all but the language head), or a regular expression over "
        "module names.",
    )


class TrainConfig(Section):
    """Section `train`."""

    base_model: str = Field(description="Model to start from: a Hugging Face name or a folder.")
    revision: str | None = Field(description=REVISION)
    steps: int = Field(
        ge=0,
        description="Optimiser steps of the main phase, which trains all weights, a count. 0: no such phase.",
    )
    batch_triplets: int = Field(ge=2, description="Triplets in one step of the main phase, a count.")
    learning_rate: float = Field(
        gt=0, description="Peak learning rate of the main phase; it falls to 0 after the warm-up."
    )
    warmup_steps: int = Field(
        ge=0, description="Steps over which the learning rate rises linearly to its peak, a count."
    )
    locked_warmup_steps: int = Field(ge=0, description="The same of the locked phase, a count.")
    optimizer: OptimizerConfig
    temperature: float = Field(gt=0, description="Temperature of the softmax in the contrastive loss.")
    negatives: int = Field(
        ge=0,
        description="Mined hard negatives per triplet that are drawn into each batch, a count. The query image is one "
        "more negative.",
    )
    locked_steps: int = Field(
        ge=0,
        description="Optimiser steps of a phase before the main one, with the image tower frozen and its features "
        "computed once, a count. 0: no such phase.",
    )
    locked_batch_triplets: int = Field(ge=2, description="Triplets in one step of the locked phase, a count.")
    locked_learning_rate: float = Field(gt=0, description="Peak learning rate of the locked phase.")
    locked_candidates: int = Field(
        ge=2, description="Most images that each query is contrasted with in a step of the locked phase, a count."
    )
    held_out_share: float = Field(
        ge=0,
        lt=1,
        description="Share of the triplets that is kept out of training for evaluation, as whole groups of triplets "
        "that share images, 0 to 1 (excluded).",
    )
    learn_temperature: bool = Field(
        False,
        description="Train the temperature too (CLIP's logit_scale), starting at `temperature`, never below 0.01.",
    )
    mask_margin: float | None = Field(
        None,
        ge=0,
        description="Images whose similarity to the query exceeds the target's by more than this are left out of the "
        "loss as likely false negatives, cosine (Qwen3-VL-Embedding: 0.1). Empty: none are.",
    )
    count_copies: bool = Field(
        False,
        description="Count an image as often as the batch names it, as the loss of sentence-transformers does. Off: "
        "each distinct image counts once.",
    )
    judge_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of a second loss, the symmetric KL divergence from the judge's scores (UniME-V2). 0: off.",
    )
    judge_temperature: float = Field(
        0.2, gt=0, description="Temperature of the softmax over the judge's scores, for `judge_weight`."
    )
    hardness_weight: float = Field(
        0.0,
        ge=0,
        description="Weigh each negative by exp(this times its similarity), so that hard ones count more (LLaVE: 9). "
        "0: off.",
    )
    matryoshka_dimensions: tuple[int, ...] = Field(
        (),
        description="Train the first so many dimensions of the vectors to work alone too, counts below the full width "
        "(Matryoshka). The loss is the mean over all widths. Empty: the full width alone.",
    )
    teacher: TeacherConfig | None = Field(
        None, description="Learn from the similarities of another retriever's vectors too. Empty: no teacher."
    )
    refresh_negatives: RefreshConfig | None = Field(
        None, description="Mine hard negatives anew with the model in training. Empty: those of the dataset."
    )
    validation: ValidationConfig | None = Field(
        None, description="Evaluate while training, on a split of its own. Empty: no."
    )
    average_seeds: int = Field(
        1,
        ge=1,
        description="Trainings with consecutive seeds whose weights are averaged (a model soup), a count. 1: one.",
    )
    version_weight: float = Field(
        1.0,
        gt=0,
        description="Share of the batches that come from the version's own triplets, relative to the weights in "
        "`datasets`.",
    )
    datasets: tuple[MixedDatasetConfig, ...] = Field(
        (),
        description="Further training datasets. Each batch comes from one dataset, drawn with its weight.",
    )
    faulty_records_share_max: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest share of a further dataset's records that may be damaged or name a missing or broken "
        "image, 0 to 1. Such records are left out and counted; with a larger share, and more than three, training "
        "stops.",
    )
    stream_records: int = Field(
        100_000,
        ge=0,
        description="A further dataset of more records than this is streamed: its records are read, and its images "
        "looked at, when their turn comes. Smaller ones are read as a whole before the first step. A count.",
    )
    cache_chunk: int | None = Field(
        None,
        ge=1,
        description="Gradient caching: images or texts in one forward and backward pass, a count. Smaller needs less "
        "memory and gives the same step. Empty: the whole batch.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Number format of the model's arithmetic. Weights, features and loss stay float32."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more work."
    )
    processes: int = Field(
        1, ge=1, description="Processes (one GPU each) that share every batch, a count. The step stays the same."
    )
    lora: LoraConfig | None = Field(
        None,
        description="Train LoRA adapters of a multimodal language model instead of its weights. Empty: all weights.",
    )
    base_precision: Literal["float32", "bfloat16", "4bit"] = Field(
        "float32",
        description="Number format in which the base model's frozen weights are held under adapters (`lora`); 4bit is "
        "NF4 and needs bitsandbytes.",
    )
    shard_weights: bool = Field(
        False,
        description="Spread weights, gradients and optimiser state over the GPUs of all processes (FSDP2), for models "
        "that do not fit on one GPU.",
    )
    decode_workers: int = Field(
        0,
        ge=0,
        description="Threads that decode the images of the next batches while the model works, a count. 0: none.",
    )
    checkpoint_steps: int = Field(
        50,
        ge=1,
        description="Steps between two checkpoints, a count. A run that was stopped continues from the last one, to "
        "the same weights.",
    )
    tensorboard: bool = Field(
        False, description="Also write the metrics for TensorBoard, to reports/training/tensorboard."
    )
    trackers: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (),
        description="Also log to these trackers, through accelerate; their servers by their own environment variables.",
    )
    device: str = Field(description=DEVICE)

    @model_validator(mode="after")
    def _check_that_there_are_steps(self) -> TrainConfig:
        if not self.locked_steps + self.steps:
            raise ValueError("'train.steps' and 'train.locked_steps' are 0; expected steps of one phase at least")
        if not self.steps:
            of_main = [f"datasets {d.name}" for d in self.datasets if d.format != "rows" or d.path not in LOCKED_TASKS]
            of_main += [key for key in ("teacher", "refresh_negatives") if getattr(self, key) is not None]
            if of_main:
                raise ValueError(
                    f"'train.steps' is 0, and only the main phase reads {', '.join(of_main)}; expected steps above 0, "
                    "or none of these"
                )
        return self

    @model_validator(mode="after")
    def _check_what_is_held_beside(self) -> TrainConfig:
        beside = [dataset.name for dataset in self.datasets if dataset.held_beside]
        if len(beside) > 1:
            raise ValueError(
                f"'train.datasets': held_beside is set for {', '.join(beside)}; expected one at most; set it to 0 for "
                "the others"
            )
        return self


class BenchmarkConfig(Section):
    """One benchmark, an entry of `evaluate.benchmark`."""

    name: str = Field(
        pattern=NAME_PATTERN, description="Unique name in the report; two entries may use the same protocol."
    )
    protocol: Literal["circo", "cirr", "fashioniq", "genecis", "mmeb", "dtin", "icir", "pinpoint"] = Field(
        description="Benchmark whose files are read and whose scoring is used (tasks/evaluate/protocols)."
    )
    path: str = Field(description="Folder with the benchmark's own files, as its download page unpacks them.")
    split: str = Field(
        "val",
        pattern=r"^\w+$",
        description="Split: val is scored; test writes the files to submit, where the benchmark has a server.",
    )
    template: str | None = Field(None, description="Text of a query. Empty: the benchmark's own template.")
    subset: str | None = Field(
        None,
        description="File that names the queries to score: CIRCUS' shortcut-free or validated ones (CSV, JSONL), or a "
        "JSON list of query ids. Empty: all.",
    )
    instruction: str | None = Field(
        None,
        description="Task instruction of the queries, for a multimodal language model. Empty: the model's own; for "
        "mmeb none, because its texts hold each task's.",
    )


class EvaluateConfig(Section):
    """Section `evaluate`."""

    benchmark: str | tuple[BenchmarkConfig, ...] | None = Field(
        description="A folder with annotations.json in CIRCO's format and images/, or a list of benchmarks, of which "
        "the first decides on promotion. Empty: the held-out triplets (train.held_out_share)."
    )
    template: str = Field(
        description="Text of a query, for a folder or the held-out triplets; {relative_caption} stands for the "
        "instruction, {shared_concept} for what both images show."
    )
    batch_images: int = Field(ge=1, description="Images in one call of the model, a count.")
    workers: int = Field(2, ge=1, description="Threads that read and prepare images, a count; no score changes.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Arithmetic of the model's matrix products; weights and vectors stay float32."
    )
    vectors: str | None = Field(
        None,
        description="Folder where vectors are kept by weights and image, for further evaluations. Empty: in the run's "
        "worktree, until the evaluation has ended.",
    )
    dropped_queries_share_max: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest share of a benchmark's queries that may be left out because an image of theirs is missing "
        "or broken, 0 to 1. The report counts them; with a larger share, and more than three, evaluation stops.",
    )
    part_scorings: int = Field(
        3, ge=1, description="Scorings (one model on one benchmark) in one part, a count: " + PART
    )
    truth: str | None = Field(
        description="File with the true contents of the sample world's images, to measure how many triplets are "
        "right. Only evaluation reads it. Empty: not measured."
    )
    device: str = Field(description=DEVICE)

    @model_validator(mode="after")
    def _check_the_benchmark(self) -> EvaluateConfig:
        if isinstance(self.benchmark, tuple):
            names = [b.name for b in self.benchmark]
            if len(set(names)) < len(names):
                raise ValueError(f"'evaluate.benchmark': names must differ, found {names}; rename one")
        if not isinstance(self.benchmark, tuple) or not self.benchmark:
            fields = set(re.findall(r"\{(\w+)\}", self.template))
            if "relative_caption" not in fields or fields - TEMPLATE_FIELDS:
                raise ValueError(
                    f"'evaluate.template' is {self.template!r}; expected {{relative_caption}} in it, and no field but "
                    "{relative_caption} and {shared_concept}"
                )
        return self


class PromoteConfig(Section):
    """Section `promote`."""

    metric: str = Field(
        description="Metric that decides, of the composed query (image and text), e.g. map_at_5, recall_at_1; the "
        "first benchmark must have it."
    )
    min_gain: float = Field(
        ge=0, description="The new model must exceed the promoted one in `metric` by more than this."
    )
    seen_share_max: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Largest share of the benchmark's query and answer images that the training data may contain, 0 "
        "to 1. Above it the model is not promoted.",
    )
    noise_seeds: int = Field(
        3,
        ge=3,
        description="Trainings with different seeds from which `python -m tasks noise` measures how far scores vary "
        "by chance, a count.",
    )
    onnx: bool = Field(
        False,
        description="Publish a promoted model of the CLIP type for onnxruntime too, in its folder onnx/; needs the "
        "extra `onnx` (`make install EXTRAS=onnx`).",
    )
