"""Parameters: one class per section of params.yaml, unknown keys refused, every number with a unit and a sentence.

`params.yaml` holds the defaults and named profiles (overlays). `open_run` lays profile and trigger form over the
defaults and writes the resolved file into the run's worktree; stages read that one. Loads neither numpy nor torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import ConfigError

EncoderRole = Literal["semantic", "pattern", "caption"]
# The three encoders that mine pairs, by their role, in the order of all columns and tables that hold one value for each.
ENCODER_ROLES: tuple[str, ...] = get_args(EncoderRole)


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OpenRunConfig(Section):
    dataset: str = Field("sample-world", min_length=1, description="Name of the dataset, used in mails and cards.")
    date: str | None = Field(
        None, pattern=r"^\d{4}-\d{2}-\d{2}$", description="The run's one date, ISO 8601; today when empty."
    )
    batch: str | None = Field(
        None,
        pattern=r"^\d{4}\.\d{2}\.\d{2}(\.\d+)?$",
        description="Batch and version name, YYYY.MM.DD[.n]; from the date when empty.",
    )
    limit: int | None = Field(
        None, ge=1, description="At most so many new images are taken in this run, a count; no limit when empty."
    )
    dry_run: bool = Field(False, description="Do everything but publish: no version, no training.")
    seed: int = Field(0, ge=0, description="Seed of every random choice in the run.")
    threads: int = Field(
        1, ge=1, description="CPU threads of a model in one task, a count; part of the result's identity on CPU."
    )


TEXT_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
TABLE_SUFFIXES = (
    ".parquet",
    *TEXT_TABLES,
    *(f"{table}{packed}" for table in TEXT_TABLES for packed in (".gz", ".zst")),
)
# Listed, and refused as a row that says what to do: a packed tar has no members that can be read where they lie, and
# packed images are no smaller.
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
PACKED_TABLES = tuple(
    f"{table}{packed}" for table in (*TEXT_TABLES, ".parquet") for packed in (".bz2", ".xz", ".zip", ".7z", ".lz4")
)


class SourceConfig(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Name of the source; stored in source_uri, never the machine's path.",
    )
    path: str = Field(
        description="Folder or s3://bucket/prefix (captions.csv or .parquet in it: path, caption, licence, source), tars, or tables of URLs; may hold *."
    )
    license_code: str = Field("unknown", description="Licence of images that name none themselves.")
    attribution: str = Field("", description="Attribution of images that name none themselves.")
    columns: dict[Literal["path", "url", "caption", "license", "attribution", "sha256"], str] = Field(
        default_factory=dict,
        description="What the source's table calls its columns, where not by the usual names (tasks/sources/labels.py).",
    )
    kind: Literal["folder", "tars", "table"] | None = Field(
        None,
        description="folder of images, WebDataset tars, or tables of URLs; when empty by the path: *.tar is tars, *.parquet, *.csv, *.jsonl[.gz] a table.",
    )
    endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="S3 endpoint of an s3:// path; AWS's own, or AWS_ENDPOINT_URL, when empty.",
    )
    region: str | None = Field(None, description="S3 region of an s3:// path; the environment's when empty.")
    contact: str = Field(
        "",
        max_length=200,
        pattern=r"^[ -~]*$",
        description="For tables of URLs: mail address or page of who fetches, sent in the User-Agent.",
    )
    robots: bool = Field(
        True,
        description="Honour robots.txt, X-Robots-Tag, meta robots and tdm-reservation; off only with the sites' consent.",
    )
    delay_s: float = Field(1.0, ge=0, description="Least time between two requests at one host, s.")
    per_host: int = Field(2, ge=1, le=64, description="Requests at one host at a time, a count.")
    deadline_s: float = Field(60.0, gt=0, description="Longest time for one file over HTTP, all redirects together, s.")
    max_wait_s: float = Field(
        60.0,
        ge=0,
        description="Longest Retry-After that is waited for, s; after a longer one a later batch tries again.",
    )
    allow_hosts: tuple[str, ...] = Field(
        (),
        description="Host names, addresses or networks that may be fetched from though they are not public (intranets).",
    )

    @property
    def kind_of_path(self) -> Literal["folder", "tars", "table"]:
        """`kind`, or what the path's suffix says."""
        is_tars, is_table = (
            self.path.endswith((".tar", *PACKED_TARS)),
            self.path.endswith((*TABLE_SUFFIXES, *PACKED_TABLES)),
        )
        return self.kind or ("tars" if is_tars else "table" if is_table else "folder")

    @model_validator(mode="after")
    def _says_who_fetches(self) -> SourceConfig:
        if self.kind_of_path == "table" and not self.contact.strip():
            raise ValueError("a table of URLs needs 'contact': a mail address or page that the sites can write to")
        return self


class FilterConfig(Section):
    model: str = Field(
        description="Image classifier: Hugging Face name or folder, loaded by AutoModelForImageClassification."
    )
    revision: str | None = Field(None, description="Pinned revision.")
    labels: tuple[str, ...] = Field(
        min_length=1, description="The model's labels that mean: not wanted. Their probabilities are added."
    )
    threshold: float = Field(0.5, ge=0, le=1, description="An image is dropped when that sum is at least this.")
    batch_images: int = Field(64, ge=1, description="Images in one call of the model, a count.")


class IngestConfig(Section):
    sources: tuple[SourceConfig, ...] = Field((), description="Where new images come from.")
    max_side_px: int = Field(512, ge=32, description="Longer side of a stored image, px.")
    min_side_px: int = Field(
        48, ge=1, description="Images with a shorter side below this are dropped as too_small, px."
    )
    max_pixels: int = Field(
        50_000_000, ge=1, description="Images whose header states more are dropped as too_large before any decode, px."
    )
    max_size_bytes: int = Field(30_000_000, ge=1, description="Files above this are dropped as too_large, bytes.")
    jpeg_quality: int = Field(95, ge=1, le=100, description="Quality of the one re-encoding.")
    jpeg_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = Field(
        "4:4:4", description="Chroma of the one re-encoding; 4:2:0 is a third smaller and faster."
    )
    hash_distance_bits: int = Field(
        12,
        ge=0,
        le=64,
        description="Perceptual hashes up to this Hamming distance are candidates for a near-duplicate, bits.",
    )
    thumbnail_distance: float = Field(
        6.0,
        ge=0,
        description="A candidate is confirmed when no 8x8 cell differs by more than this, mean absolute RGB, 0..255.",
    )
    allowed_licenses: tuple[str, ...] = Field((), description="Only these licence codes are kept; all when empty.")
    resampler: Literal["pillow", "opencv"] = Field(
        "pillow", description="What shrinks: Pillow's bicubic, the same bytes everywhere; or OpenCV, faster."
    )
    crop_margin: float = Field(
        0.0,
        ge=0,
        le=0.1,
        description="Near-copies are also looked for with so much more or less at each side, share of it; 0: not, which is faster.",
    )
    workers: int | None = Field(
        None, ge=1, description="Processes that decode, a count; one per core when empty. Shows in no table."
    )
    worker_memory_mib: int = Field(
        420, ge=64, description="What decoding one file may take; a file that needs more is dropped as too_costly, MiB."
    )
    worker_cpu_s: float = Field(
        20.0,
        gt=0,
        description="CPU time that decoding one file may take; a file that needs more is dropped as too_costly, s.",
    )
    blocklists: tuple[str, ...] = Field(
        (), description="Files with hashes of images that are never taken in (tasks/fingerprints/hash_lists.py)."
    )
    benchmark_hashes: tuple[str, ...] = Field(
        (), description="Files of `python -m tasks decontaminate build`: copies of their images are not taken in."
    )
    blocked_distance_bits: int = Field(
        6, ge=0, le=64, description="A perceptual hash without a thumbnail in a list refuses images this near, bits."
    )
    drop_flags: tuple[Literal["blurry", "near_empty", "extreme_ratio", "text_heavy"], ...] = Field(
        (),
        description="Quality flags that drop an image as low_quality; all are columns whether or not they stand here.",
    )
    filters: dict[str, FilterConfig] = Field(
        default_factory=dict, description="Classifiers that refuse images, by name (nsfw, faces ...); none by default."
    )
    shard_images: int = Field(10_000, ge=1, description="Images in one tar shard, a count.")
    takedown: str | None = Field(
        None,
        description="Takedown list: a text file with sha256 sums of stored or source bytes (tasks/fingerprints/takedown.py).",
    )


class RecaptionConfig(Section):
    max_new_tokens: int = Field(64, ge=1, description="Length of a caption, tokens.")
    batch_images: int = Field(64, ge=1, description="Images in one call of the model, a count.")


class EncoderConfig(Section):
    model: str = Field(description="Hugging Face name or folder.")
    revision: str | None = Field(
        None, description="Pinned revision; the folder's own content hash when empty and local."
    )
    kind: Literal["image", "text"] = Field(description="What it encodes: the image or its caption.")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="Of the weights on a GPU; on a CPU always float32."
    )
    cpu_dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="Of the products on a CPU (tasks/models/encoders/cpu_precision.py); vectors of two kinds do not meet in one index.",
    )


class EmbedConfig(Section):
    preprocess: Literal["stock", "fast"] = Field(
        "stock",
        description="Images by the model's own processor, or by ours (tasks/models/encoders/preprocess.py); windows are calibrated on the same one.",
    )
    encoders: dict[EncoderRole, EncoderConfig] = Field(default_factory=dict, description="Encoders by role.")
    batch_images: int = Field(128, ge=1, description="Images or captions in one call of the model, a count.")
    readers: int = Field(
        1,
        ge=1,
        description="Threads that read images ahead of the model, a batch each, a count; on a GPU as many as there are cores.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")


class Window(Section):
    low: float = Field(ge=-1, le=1, description="Lowest cosine similarity of a pair.")
    high: float = Field(ge=-1, le=1.01, description="Similarities from here on are near-copies, not pairs.")


class MineConfig(Section):
    neighbours: int = Field(20, ge=1, description="Nearest rows looked at per query (k), a count.")
    windows: dict[EncoderRole, Window] = Field(default_factory=dict, description="Cosine window per encoder.")
    backend: Literal["blocked", "torch", "faiss-flat", "faiss-ivf", "faiss-hnsw"] = Field(
        "blocked",
        description="Search backend: our blocked join, the same on a GPU, or FAISS's IndexFlatIP, all exact with the same rows; or an approximate FAISS index.",
    )
    memory_mib: int = Field(
        1024, ge=1, description="What the join may take beside vectors, their codes and its result, MiB."
    )


class SelectConfig(Section):
    pairs_per_query: int = Field(3, ge=1, description="Pairs that one image may start, a count.")
    pairs_per_target: int = Field(4, ge=1, description="Pairs that one image may end (hubs), a count.")
    pairs_per_batch: int | None = Field(
        None, ge=1, description="Pairs that one run may add, a count; no limit when empty."
    )
    negatives: int = Field(5, ge=0, description="Mined hard negatives per pair beside the query image, a count.")
    copy_similarity: dict[str, float] = Field(
        default_factory=dict,
        description="Per encoder: a negative this near to the target is its copy, cosine; the window's high end when absent.",
    )
    negative_margin: float = Field(
        0,
        ge=0,
        description="A negative lies at least so many times as far from the target (1 - cosine, by its encoder) as the query does; 0: no margin.",
    )
    drop_query_copies: bool = Field(
        False,
        description="A target or negative that any encoder holds for a copy of the query (copy_similarity) is left out.",
    )
    both_directions: bool = Field(
        False,
        description="A pair brings its other direction along as a pair of its own; both or neither, within all quotas.",
    )
    pairs_per_encoder: dict[EncoderRole, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Per encoder: pairs of one run that it may have mined, a count; no limit where absent.",
    )
    pairs_per_source: int | None = Field(
        None, ge=1, description="Pairs of one run whose query is of one source, a count; no limit when empty."
    )
    nearest_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Most of a run's pairs whose target is the query's nearest by encoder 'semantic' (the image alone finds it), a share.",
    )
    bands: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="Weights of equal bands of a query's window, the nearest first: its pairs are drawn over them. Best agreement first when empty.",
    )
    agreement: Literal["rank", "encoders"] = Field(
        "rank",
        description="Which pairs come first without bands: those ranked best (the nearest), or those that most encoders mined, however near.",
    )
    bands_by: Literal["rank", "similarity"] = Field(
        "rank",
        description="What bands divide: ranks 0 to mine.neighbours, or the window's cosines from high to low, of the encoder that ranks the pair best.",
    )


class CaptionConfig(Section):
    engine: Literal["transformers", "openai", "vllm"] = Field(
        "transformers", description="In process, an OpenAI-compatible server, or vLLM in process."
    )
    model: str = Field(description="MLLM that describes pairs: Hugging Face name or folder.")
    revision: str | None = Field(None, description="Pinned revision of the MLLM.")
    writer: str = Field(description="LLM that turns a description into instructions: Hugging Face name or folder.")
    writer_revision: str | None = Field(None, description="Pinned revision of the LLM.")
    url: str = Field(
        "http://127.0.0.1:8000/v1",
        description="Base URL of the server that serves the MLLM, for engine 'openai'; replicas separated by commas.",
    )
    writer_url: str = Field(
        "http://127.0.0.1:8001/v1", description="Base URL of the server that serves the LLM, for engine 'openai'."
    )
    prompts: str = Field("tiny", description="Folder below tasks/prompts with the prompt texts.")
    styles: tuple[str, ...] = Field(
        ("imperative", "noun phrase", "question", "keep", "short"),
        min_length=1,
        description="Styles asked for, one instruction each; `short 2` is about the second difference, where prompts ask for descriptions by a form.",
    )
    instructions_min: int = Field(3, ge=1, description="Different instructions that a pair must have, a count.")
    max_new_tokens: int = Field(80, ge=1, description="Length of a reply, tokens.")
    max_chars: int = Field(400, ge=1, description="Longest instruction, characters.")
    batch_pairs: int = Field(64, ge=1, description="Pairs in one call of the model, a count.")
    chunk_pairs: int = Field(256, ge=1, description="Pairs in one file; the unit of resuming and of parts, a count.")
    parts: int = Field(1, ge=1, description="Mapped tasks that share the work in Airflow, a count.")
    in_flight: int = Field(16, ge=1, description="Requests at one server at once, a count; fewer while it says busy.")
    timeout_s: float = Field(
        300.0, gt=0, description="Longest that a served reply may take before it is asked for again, s."
    )
    languages: tuple[str, ...] = Field(
        ("en",),
        min_length=1,
        description="Languages of the instructions, ISO 639-1; each pair gets one, drawn by the seed.",
    )
    demonstrations: int = Field(
        5,
        ge=0,
        description="Demonstrations shown to the writer, drawn by the seed for each pair, where write.txt has room for them.",
    )
    leak_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="A text with at least this share of the target's caption's words leaks it; off when empty.",
    )
    source_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="A text with this share of the words that only the source's side of the differences has gives it away; off when empty.",
    )
    description_words: tuple[int, int] = Field(
        (60, 100), description="Words asked of a description, where its prompt asks for a number: drawn for each pair."
    )
    reverse: bool = Field(
        False,
        description="Also write instructions that lead from a pair's target back to its query: triplets of their own.",
    )
    same_text_pairs: int | None = Field(
        None,
        ge=1,
        description="A text that more pairs of one chunk share is about none of them, a count; off when empty.",
    )
    canaries: str | None = Field(
        None,
        description="Folder with canaries.csv (query, target, expect): pairs whose difference is known, shown in each part.",
    )
    canaries_min: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Least share of canaries whose description says the difference; below it the part fails.",
    )
    blank_max: float = Field(
        0.34,
        ge=0,
        le=1,
        description="Most canaries that a description of two blank images may fit, a share; above it the part fails.",
    )
    budget_tokens: int | None = Field(
        None,
        ge=1,
        description="Tokens that one run may spend on captions; its parts stop politely there. No limit when empty.",
    )
    tokens_per_s: float | None = Field(
        None,
        gt=0,
        description="Measured speed of one GPU, prompt and output tokens a second; for `python -m tasks plan`.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")


class JudgeConfig(Section):
    engine: Literal["transformers", "openai", "vllm"] = Field(
        "transformers", description="In process, an OpenAI-compatible server, or vLLM in process."
    )
    url: str = Field(
        "http://127.0.0.1:8000/v1", description="Base URL of the server that serves the judge, for engine 'openai'."
    )
    model: str = Field(description="MLLM that judges: Hugging Face name or folder.")
    revision: str | None = Field(None, description="Pinned revision.")
    threshold: float = Field(
        0.5, ge=0, le=1, description="An instruction is kept when P(yes) of the target is at least this."
    )
    negative_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="A negative whose P(yes) reaches this for an instruction is a false negative of it.",
    )
    instructions_min: int = Field(1, ge=1, description="Judged instructions that a triplet must keep, a count.")
    batch_questions: int = Field(256, ge=1, description="Questions in one call of the model, a count.")
    chunk_pairs: int = Field(256, ge=1, description="Pairs in one file; the unit of resuming and of parts, a count.")
    parts: int = Field(1, ge=1, description="Mapped tasks that share the work in Airflow, a count.")
    in_flight: int = Field(16, ge=1, description="Requests at one server at once, a count; fewer while it says busy.")
    timeout_s: float = Field(
        300.0, gt=0, description="Longest that a served reply may take before it is asked for again, s."
    )
    negative_margin: float | None = Field(
        None,
        ge=0,
        le=1,
        description="A negative above the target's P(yes) minus this is a false one too; off when empty.",
    )
    negatives: int | None = Field(
        None,
        ge=1,
        description="Mined negatives of a triplet, a count: more candidates stand in for false ones. All when empty.",
    )
    labelled: str | None = Field(
        None, description="CSV or Parquet (query, candidate, instruction, fits) that judges the judge before it judges."
    )
    accuracy_min: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Least share of `labelled` that it must get right at `threshold`; below it the part fails.",
    )
    false_yes_max: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Most of the wrong candidates in `labelled` that it may take, a share; above it the part fails.",
    )
    auc_min: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Least chance that a right candidate in `labelled` scores above a wrong one; blind judges have 0.5.",
    )
    shortcut_share_max: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Most triplets of a chunk that one modality alone may solve, a share; the rest are dropped. Only tagged when empty.",
    )
    shortcut_pictures: int = Field(
        20_000,
        ge=2,
        description="Images of the corpus that text or image alone must find the target among, drawn by the seed, at most, a count.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")


class ValidateConfig(Section):
    images: dict[str, float] = Field(default_factory=dict, description="Numbers of the suite expectations/images.json.")
    pairs: dict[str, float] = Field(default_factory=dict, description="Numbers of the suite expectations/pairs.json.")
    triplets: dict[str, float] = Field(
        default_factory=dict, description="Numbers of the suite expectations/triplets.json."
    )


class VersionConfig(Section):
    license: str = Field("other", description="Licence of the dataset as the card states it.")
    embed_images: bool = Field(
        True, description="Also publish a Parquet export with the images inside (small versions)."
    )
    gallery_triplets: int = Field(48, ge=0, description="Triplets sampled for the version's gallery page, a count.")


class MixedDatasetConfig(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name of the dataset, for reports.")
    format: Literal["megapairs", "mmeb"] = Field(
        description="MegaPairs' own records (q_img, q_text, t_img, hns) or VLM2Vec's (qry, qry_image_path, pos_...)."
    )
    path: str = Field(description="JSONL file, or a folder of them.")
    images: str = Field(description="Folder that the records' image paths are relative to.")
    weight: float = Field(1.0, gt=0, description="Share of the batches, relative to the other weights.")


class LoraConfig(Section):
    rank: int = Field(32, ge=1, description="Rank of the adapters (MegaPairs: 32), a count.")
    alpha: int = Field(64, ge=1, description="Their scale is alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on their input.")
    targets: str = Field(
        "all-linear", description="all-linear (all but the language head), or a regular expression over module names."
    )


class TrainConfig(Section):
    base_model: str = Field(description="Checkpoint to start from: Hugging Face name or folder.")
    revision: str | None = Field(None, description="Pinned revision.")
    steps: int = Field(300, ge=1, description="Optimiser steps, a count.")
    batch_triplets: int = Field(64, ge=2, description="Triplets in one step, a count.")
    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate, linear decay.")
    warmup_steps: int = Field(10, ge=0, description="Steps of linear warm-up, a count.")
    temperature: float = Field(0.02, gt=0, description="Temperature of the softmax.")
    negatives: int = Field(5, ge=0, description="Mined negatives used per triplet beside the query image, a count.")
    locked_steps: int = Field(
        0, ge=0, description="Steps before those, with the image tower locked and every image a candidate, a count."
    )
    locked_batch_triplets: int = Field(256, ge=2, description="Triplets in one of those steps, a count.")
    locked_learning_rate: float = Field(1e-5, gt=0, description="Their peak learning rate, linear decay.")
    locked_candidates: int = Field(
        4096, ge=2, description="Most images that stand against a query in one of those steps, a count."
    )
    held_out_share: float = Field(
        0.1, ge=0, lt=1, description="Share of triplets (whole connected components) never trained on."
    )
    learn_temperature: bool = Field(
        False, description="Train the temperature too, from `temperature` on, never below 0.01 (CLIP's logit_scale)."
    )
    mask_margin: float | None = Field(
        None,
        ge=0,
        description="Images that score higher than the target by more are no negatives, cosine (0.1 in Qwen3-VL).",
    )
    count_copies: bool = Field(
        False,
        description="An image weighs as often as the batch names it, as in sentence-transformers' loss; once when off.",
    )
    judge_weight: float = Field(
        0.0, ge=0, description="Weight of the symmetric KL divergence from the judge's scores (UniME-V2); 0 is off."
    )
    judge_temperature: float = Field(0.2, gt=0, description="Temperature of the softmax over the judge's scores.")
    version_weight: float = Field(
        1.0,
        gt=0,
        description="Share of the batches that come from the version's own triplets, relative to `datasets`' weights.",
    )
    datasets: tuple[MixedDatasetConfig, ...] = Field(
        (), description="Further datasets; each batch comes from one, drawn by weight."
    )
    cache_chunk: int | None = Field(
        None,
        ge=1,
        description="Gradient caching: images or texts in one pass of the model; the whole batch when empty.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the towers' arithmetic; weights, features and loss stay float32."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more work."
    )
    processes: int = Field(
        1, ge=1, description="Processes (one GPU each) that share every batch; the step is the same, a count."
    )
    lora: LoraConfig | None = Field(
        None,
        description="Train adapters of an MLLM's vision and language parts, not its weights; all weights when empty.",
    )
    shard_weights: bool = Field(
        False,
        description="Spread weights, gradients and optimiser over the processes' GPUs (FSDP2): for models that one cannot hold.",
    )
    decode_workers: int = Field(
        0, ge=0, description="Threads that decode the next batches' images while the model works, a count; 0: in turn."
    )
    checkpoint_steps: int = Field(
        50, ge=1, description="A run that dies goes on from the last multiple of this, with the same weights; steps."
    )
    tensorboard: bool = Field(False, description="Write reports/training/tensorboard beside the metrics as JSON lines.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")


class BenchmarkConfig(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Name in the report; two benchmarks may share a protocol."
    )
    protocol: Literal["circo", "cirr", "fashioniq", "genecis", "mmeb"] = Field(
        description="How it is read, ranked and scored (tasks/protocols)."
    )
    path: str = Field(description="Folder with the benchmark's own files, as its page unpacks them.")
    split: str = Field(
        "val",
        pattern=r"^\w+$",
        description="val; test writes the server's submission files where the benchmark has a server.",
    )
    template: str | None = Field(None, description="Query text; the benchmark's pinned one when empty.")


class EvaluateConfig(Section):
    benchmark: str | tuple[BenchmarkConfig, ...] | None = Field(
        None,
        description="Folder with annotations.json in CIRCO's format and images/; or named benchmarks, the first decides; the held-out split when empty.",
    )
    template: str = Field(
        "{relative_caption}",
        description="Query text of a folder or of the held-out split; may use {relative_caption} and {shared_concept}.",
    )
    batch_images: int = Field(128, ge=1, description="Images in one call of the model, a count.")
    truth: str | None = Field(None, description="The sample world's truth file, read by evaluation alone.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")


class PromoteConfig(Section):
    metric: str = Field("map_at_5", description="Main metric of the composed query.")
    min_gain: float = Field(0.005, ge=0, description="The candidate must beat the model in place by more than this.")
    seen_share_max: float = Field(
        0.01, ge=0, le=1, description="Largest share of the benchmark's query and answer images in the training data."
    )
    noise_seeds: int = Field(
        3, ge=3, description="Runs that `python -m tasks noise` measures a recipe's seed noise from, a count."
    )


class Params(Section):
    """The whole of params.yaml, resolved."""

    profile: str = Field("demo", description="Name of the profile that was laid over the defaults.")
    open_run: OpenRunConfig
    ingest: IngestConfig
    recaption: RecaptionConfig
    embed: EmbedConfig
    mine: MineConfig
    select: SelectConfig
    caption: CaptionConfig
    judge: JudgeConfig
    validate_: ValidateConfig = Field(alias="validate")
    version: VersionConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    promote: PromoteConfig


def overlay(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, mappings merged key by key, all else replaced. Neither is changed."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _model_at(location: tuple[Any, ...]) -> type[BaseModel] | None:
    """The section's class at a validation error's location."""
    model: Any = Params
    for name in location:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return None
        field = model.model_fields.get(name) or next((f for f in model.model_fields.values() if f.alias == name), None)
        model = field.annotation if field else None
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def parse_params(raw: dict[str, Any], where: str = "params") -> Params:
    """Check a resolved mapping.

    Raises:
        ConfigError: unknown key, wrong type or value; names the key, what was found and what is expected.
    """
    try:
        return Params.model_validate({k: v for k, v in raw.items() if k != "profiles"})
    except ValidationError as error:
        lines = []
        for e in error.errors():
            place = ".".join(str(x) for x in e["loc"])
            if e["type"] == "extra_forbidden":
                model = _model_at(e["loc"][:-1])
                known = sorted(f.alias or n for n, f in model.model_fields.items()) if model else []
                lines.append(
                    f"unknown key '{place}'; known in '{'.'.join(map(str, e['loc'][:-1])) or 'the top level'}': {known}"
                )
            else:
                lines.append(f"'{place}' is {e.get('input')!r}: {e['msg']}")
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def resolve(raw: dict[str, Any], profile: str | None = None, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Defaults, then the named profile, then a run's own changes; without the `profiles` key.

    Raises:
        ConfigError: no such profile.
    """
    profiles = raw.get("profiles") or {}
    base = {k: v for k, v in raw.items() if k != "profiles"}
    if profile:
        if profile not in profiles:
            raise ConfigError(f"params.yaml: no profile '{profile}'; known: {sorted(profiles)}")
        base = overlay(base, profiles[profile])
        base["profile"] = profile
    return overlay(base, changes or {})


def read_raw(path: Path) -> dict[str, Any]:
    """The YAML file as a mapping."""
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); run from the project's root or a run's worktree"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({error})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of stages to parameters, found {type(raw).__name__}")
    return raw


def load_params(path: Path | str = "params.yaml", profile: str | None = None) -> Params:
    """Read and check params.yaml as a stage sees it."""
    path = Path(path)
    return parse_params(resolve(read_raw(path), profile), where=str(path))


def sources_of(value: Any, defaults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sources as the form may give them: a path, a list of paths, or a list of mappings as in params.yaml.

    A bare path takes licence and attribution from params.yaml only when its name is a source there; its name is the
    folder's.
    """
    known = {d["path"]: d for d in defaults}
    sources = []
    for item in [value] if isinstance(value, str | dict) else value:
        if isinstance(item, str):
            name = "".join(c if c.isalnum() or c in "_.-" else "-" for c in Path(item).name).strip("-._") or "source"
            item = known.get(item, {"name": name, "path": item})
        sources.append(item)
    return sources
