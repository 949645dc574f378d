"""Parameters that contradict each other, each valid alone. Found when a run opens, not hours later in some stage.

Each function compares sections and returns one message per contradiction: both keys, both values, why they cannot both
hold, and the remedy. Only combinations that cannot work are refused, none that merely look unusual.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tasks.config.gates import ImagesGateConfig, PairsGateConfig, TripletsGateConfig
from tasks.config.ingest import IngestConfig
from tasks.config.pairs import EmbedConfig, MineConfig, SelectConfig
from tasks.config.texts import CaptionConfig, JudgeConfig
from tasks.config.training import EvaluateConfig, PromoteConfig, TrainConfig

ROLE_KINDS: dict[str, tuple[str, ...]] = {
    "semantic": ("image", "text"),
    "pattern": ("image", "text"),
    "caption": ("text", "tfidf", "image"),
    "words": ("tfidf", "text"),
}


def _message(first: tuple[str, Any], second: tuple[str, Any], why: str, remedy: str) -> str:
    """One contradiction as a sentence; `first` and `second` are (key, value)."""
    return f"'{first[0]}' is {first[1]} and '{second[0]}' is {second[1]}: {why}; {remedy}"


def ingest_contradictions(ingest: IngestConfig) -> Iterator[str]:
    """Size limits that leave no image."""
    if ingest.min_side_px**2 > ingest.max_pixels:
        yield _message(
            ("ingest.min_side_px", ingest.min_side_px),
            ("ingest.max_pixels", ingest.max_pixels),
            "every image is too small or too large",
            f"raise ingest.max_pixels to {ingest.min_side_px**2} or more, or lower ingest.min_side_px",
        )


def pair_contradictions(embed: EmbedConfig, mine: MineConfig, select: SelectConfig) -> Iterator[str]:
    """Encoders without a window, limits that leave no pair."""
    for role in embed.encoders:
        if role not in mine.windows:
            yield _message(
                (f"embed.encoders.{role}", embed.encoders[role].model),
                ("mine.windows", f"only for {sorted(mine.windows)}"),
                "this encoder has no window to mine with",
                f"add mine.windows.{role} (`python -m tasks calibrate` proposes it)",
            )
    for role, similarity in select.copy_similarity.items():
        window = mine.windows.get(role)
        if select.drop_query_copies and window is not None and similarity <= window.low:
            yield _message(
                (f"select.copy_similarity.{role}", similarity),
                (f"mine.windows.{role}.low", window.low),
                "with select.drop_query_copies every pair of this encoder counts as a pair of copies",
                f"raise select.copy_similarity.{role} above the window's low end",
            )
    for role, similarity in (select.same_content_min or {}).items():
        key = (f"select.same_content_min.{role}", similarity)
        window = mine.windows.get(role)
        if role not in embed.encoders:
            yield _message(
                key,
                ("embed.encoders", f"only for {sorted(embed.encoders)}"),
                "no image has a vector of this encoder",
                f"name one of those encoders, or add embed.encoders.{role}",
            )
        elif window is not None and similarity <= window.low:
            yield _message(
                key,
                (f"mine.windows.{role}.low", window.low),
                "every pair of this encoder counts as the same content",
                f"raise select.same_content_min.{role} above the window's low end",
            )
    yield from _kind_contradictions(embed)
    yield from _next_contradictions(embed)
    if select.both_directions and select.pairs_per_batch == 1:
        yield _message(
            ("select.both_directions", True),
            ("select.pairs_per_batch", 1),
            "a pair and its reverse are two pairs, so none is ever added",
            "raise select.pairs_per_batch to 2 or more",
        )


def _kind_contradictions(embed: EmbedConfig) -> Iterator[str]:
    """An encoder of a kind that its role cannot take: TF-IDF reads captions, as the roles `caption` and `words` do."""
    for role, spec in embed.encoders.items():
        kinds = ROLE_KINDS[role]
        if spec.kind not in kinds:
            yield _message(
                (f"embed.encoders.{role}.kind", spec.kind),
                (f"embed.encoders.{role}.model", spec.model),
                f"role {role} takes encoders of kind {' or '.join(kinds)}",
                f"set embed.encoders.{role}.kind to {' or '.join(kinds)}, or give the model another role",
            )


def _next_contradictions(embed: EmbedConfig) -> Iterator[str]:
    """An encoder that follows none, or one that encodes something else."""
    for role, spec in (embed.next or {}).items():
        if role not in embed.encoders:
            yield _message(
                (f"embed.next.{role}", spec.model),
                ("embed.encoders", f"only for {sorted(embed.encoders)}"),
                "there is no encoder that it could follow",
                f"name one of those, or add embed.encoders.{role}",
            )
        elif spec.kind != embed.encoders[role].kind:
            yield _message(
                (f"embed.next.{role}.kind", spec.kind),
                (f"embed.encoders.{role}.kind", embed.encoders[role].kind),
                "an encoder is followed by one of its kind",
                "give both the same kind",
            )


def text_contradictions(caption: CaptionConfig, judge: JudgeConfig) -> Iterator[str]:
    """More instructions required than are written; ranges that are the wrong way round; checks that never apply."""
    styles = ("caption.styles", list(caption.styles))
    for key, value in (
        ("caption.instructions_min", caption.instructions_min),
        ("judge.instructions_min", judge.instructions_min),
    ):
        if value > len(caption.styles):
            yield _message(
                (key, value),
                styles,
                f"a pair gets one instruction per style, at most {len(caption.styles)}",
                f"lower {key} to {len(caption.styles)}, or add styles",
            )
    low, high = caption.description_words
    if not 1 <= low <= high:
        yield f"'caption.description_words' is [{low}, {high}]: expected [fewest, most] with 1 <= fewest <= most"
    rows = caption.chunk_pairs * (2 if caption.reverse else 1)
    if caption.same_text_pairs is not None and caption.same_text_pairs >= rows:
        yield _message(
            ("caption.same_text_pairs", caption.same_text_pairs),
            ("caption.chunk_pairs", caption.chunk_pairs),
            f"a chunk has at most {rows} pairs, so no text is ever shared by more",
            "lower caption.same_text_pairs, or leave it empty",
        )


def negatives_contradictions(select: SelectConfig, judge: JudgeConfig, train: TrainConfig) -> Iterator[str]:
    """Judge and training ask for more mined negatives than the stage before them makes."""
    if judge.negatives is not None and judge.negatives > select.negatives:
        yield _message(
            ("judge.negatives", judge.negatives),
            ("select.negatives", select.negatives),
            "the judge cannot keep more negatives than were mined",
            f"raise select.negatives to {judge.negatives} or more, or lower judge.negatives",
        )
    key, available = ("select.negatives", select.negatives)
    if judge.negatives is not None and judge.negatives <= select.negatives:
        key, available = ("judge.negatives", judge.negatives)
    if train.negatives > available and not train.datasets:
        yield _message(
            ("train.negatives", train.negatives),
            (key, available),
            "a triplet has fewer negatives than training draws",
            f"lower train.negatives to {available}, or raise {key}",
        )


def kept_base(train: TrainConfig) -> float:
    """The largest `keep_base` of the datasets; 0 where none has it."""
    return max((dataset.keep_base for dataset in train.datasets), default=0.0)


def training_contradictions(train: TrainConfig) -> Iterator[str]:
    """Settings of one training that exclude each other."""
    if train.locked_steps and train.locked_candidates < train.locked_batch_triplets:
        yield _message(
            ("train.locked_candidates", train.locked_candidates),
            ("train.locked_batch_triplets", train.locked_batch_triplets),
            "the targets of a batch are candidates already",
            f"raise train.locked_candidates to {train.locked_batch_triplets} or more",
        )
    if train.lora is not None and train.locked_steps:
        yield _message(
            ("train.lora", f"rank {train.lora.rank}"),
            ("train.locked_steps", train.locked_steps),
            "adapters are for multimodal language models, which have no separate image tower to lock",
            "set train.locked_steps to 0",
        )
    yield from option_contradictions(train)
    for key, value, why in (
        ("train.lora", train.lora and f"rank {train.lora.rank}", "adapters are not merged into sharded weights"),
        ("train.datasets[].keep_base", kept_base(train), "a copy of the base model is held whole"),
        (
            "train.validation.keep_best",
            train.validation is not None and train.validation.keep_best,
            "the best weights are kept whole, by one process",
        ),
        ("train.average_seeds", train.average_seeds > 1 and train.average_seeds, "whole weights are averaged"),
        (
            "train.learn_temperature",
            train.learn_temperature,
            "a trained temperature is one number, which has no shards",
        ),
    ):
        if train.shard_weights and value:
            yield _message((key, value), ("train.shard_weights", True), why, f"switch {key} or train.shard_weights off")


def option_contradictions(train: TrainConfig) -> Iterator[str]:
    """Options of one training that need each other, or exclude each other."""
    names = [dataset.name for dataset in train.datasets]
    if len(set(names)) < len(names):
        yield f"'train.datasets': names must differ, found {names}; their images are known by them; rename one"
    if train.base_precision != "float32" and train.lora is None:
        yield _message(
            ("train.base_precision", train.base_precision),
            ("train.lora", "empty"),
            "only frozen weights are held in fewer bits",
            "give train.lora, or set train.base_precision to float32",
        )
    if train.average_seeds > 1 and train.lora is not None:
        yield _message(
            ("train.average_seeds", train.average_seeds),
            ("train.lora", f"rank {train.lora.rank}"),
            "the mean of two adapters is not the adapter of the mean",
            "set train.average_seeds to 1, or train all weights",
        )
    if train.refresh_negatives is not None and train.negatives > train.refresh_negatives.negatives:
        yield _message(
            ("train.negatives", train.negatives),
            ("train.refresh_negatives.negatives", train.refresh_negatives.negatives),
            "a triplet has fewer negatives than training draws",
            f"raise train.refresh_negatives.negatives to {train.negatives}, or lower train.negatives",
        )


def promotion_contradictions(train: TrainConfig, promote: PromoteConfig) -> Iterator[str]:
    """A promoted model that cannot be published as asked."""
    if promote.onnx and train.lora is not None:
        yield _message(
            ("promote.onnx", True),
            ("train.lora", f"rank {train.lora.rank}"),
            "adapters are for multimodal language models, and only models of the CLIP type are exported to ONNX",
            "switch promote.onnx off",
        )


def model_type_contradictions(train: TrainConfig, promote: PromoteConfig, *, is_joint: bool) -> Iterator[str]:
    """Settings that do not suit the base model's type, which only its config.json says.

    Args:
        train: the recipe.
        promote: how the model is published.
        is_joint: a multimodal language model, which reads image and text together; else a CLIP.
    """
    base = ("train.base_model", f"{train.base_model!r}, a {'multimodal language model' if is_joint else 'CLIP'}")
    if is_joint and train.locked_steps:
        yield _message(
            ("train.locked_steps", train.locked_steps),
            base,
            "it reads image and text together, no tower can be locked",
            "set train.locked_steps to 0",
        )
    if is_joint and kept_base(train):
        yield _message(
            ("train.datasets[].keep_base", kept_base(train)),
            base,
            "it holds the features of captions by a CLIP's text tower",
            "set keep_base to 0",
        )
    if is_joint and promote.onnx:
        yield _message(
            ("promote.onnx", True),
            base,
            "only models of the CLIP type are exported to ONNX",
            "switch promote.onnx off",
        )
    if not is_joint and train.lora is not None:
        yield _message(
            ("train.lora", f"rank {train.lora.rank}"),
            base,
            "adapters are for multimodal language models; a CLIP is trained as a whole",
            "leave train.lora empty",
        )


def training_run_contradictions(train: TrainConfig, evaluate: EvaluateConfig) -> list[str]:
    """What a run that trains, evaluates and decides on promotion cannot do, though training alone could."""
    contradictions = []
    if not evaluate.benchmark and not train.held_out_share:
        contradictions.append(
            _message(
                ("train.held_out_share", train.held_out_share),
                ("evaluate.benchmark", "empty"),
                "there is nothing to evaluate on",
                "raise train.held_out_share (0.1, say), or name a benchmark",
            )
        )
    if train.warmup_steps > train.steps:
        contradictions.append(
            _message(
                ("train.warmup_steps", train.warmup_steps),
                ("train.steps", train.steps),
                "the learning rate never reaches its peak",
                f"lower train.warmup_steps to {train.steps} or less, or raise train.steps",
            )
        )
    return contradictions


def images_gate_contradictions(gate: ImagesGateConfig, limit: int | None) -> Iterator[str]:
    """A gate that asks for more images than the run may take in."""
    if limit is not None and gate.rows_min > limit:
        yield _message(
            ("validate.images.rows_min", f"{gate.rows_min:g}"),
            ("open_run.limit", limit),
            "the gate stops every run that keeps to the limit",
            f"lower validate.images.rows_min to {limit}, or raise open_run.limit",
        )


def pairs_gate_contradictions(gate: PairsGateConfig, mine: MineConfig, select: SelectConfig) -> Iterator[str]:
    """A gate that no pair, or no run, can pass."""
    low, high = (
        ("validate.pairs.similarity_min", gate.similarity_min),
        ("validate.pairs.similarity_max", gate.similarity_max),
    )
    if gate.similarity_min > gate.similarity_max:
        yield _message(low, high, "no similarity is in this range", "give a minimum below the maximum")
    elif mine.windows:
        lowest = min(w.low for w in mine.windows.values())
        highest = max(w.high for w in mine.windows.values())
        if gate.similarity_max < lowest:
            remedy = f"raise validate.pairs.similarity_max above {lowest}"
            yield _message(high, ("mine.windows", f"from {lowest}"), "the gate stops every pair", remedy)
        if gate.similarity_min > highest:
            remedy = f"lower validate.pairs.similarity_min below {highest}"
            yield _message(low, ("mine.windows", f"up to {highest}"), "the gate stops every pair", remedy)
    if select.pairs_per_batch is not None and gate.rows_min > select.pairs_per_batch:
        yield _message(
            ("validate.pairs.rows_min", f"{gate.rows_min:g}"),
            ("select.pairs_per_batch", select.pairs_per_batch),
            "the gate stops every run that keeps to the limit",
            f"lower validate.pairs.rows_min to {select.pairs_per_batch}, or raise select.pairs_per_batch",
        )


def triplets_gate_contradictions(
    gate: TripletsGateConfig, caption: CaptionConfig, judge: JudgeConfig, select: SelectConfig
) -> Iterator[str]:
    """A gate that stops what the judge accepts."""
    fewest = ("validate.triplets.instructions_min", f"{gate.instructions_min:g}")
    most = ("validate.triplets.instructions_max", f"{gate.instructions_max:g}")
    if gate.instructions_min > gate.instructions_max:
        yield _message(fewest, most, "no number is in this range", "give a minimum that is at most the maximum")
    if gate.instructions_min > judge.instructions_min:
        yield _message(
            fewest,
            ("judge.instructions_min", judge.instructions_min),
            "the gate stops triplets that the judge accepts",
            f"raise judge.instructions_min to {gate.instructions_min:g}, or lower {fewest[0]}",
        )
    if gate.instructions_max < len(caption.styles):
        yield _message(
            most,
            ("caption.styles", list(caption.styles)),
            "the gate stops triplets whose instructions were all accepted",
            f"raise {most[0]} to {len(caption.styles)} or more",
        )
    if gate.yes_min > judge.threshold:
        yield _message(
            ("validate.triplets.yes_min", gate.yes_min),
            ("judge.threshold", judge.threshold),
            "the gate stops triplets that the judge accepts",
            f"lower validate.triplets.yes_min to {judge.threshold}, or raise judge.threshold",
        )
    if select.pairs_per_batch is not None:
        rows = select.pairs_per_batch * (2 if caption.reverse else 1)
        if gate.rows_min > rows:
            yield _message(
                ("validate.triplets.rows_min", f"{gate.rows_min:g}"),
                ("select.pairs_per_batch", select.pairs_per_batch),
                f"a run makes at most {rows} triplets",
                f"lower validate.triplets.rows_min to {rows}, or raise select.pairs_per_batch",
            )
