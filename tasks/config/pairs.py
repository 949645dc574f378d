"""Parameters of the stages that find pairs of related images: recaption, embed, mine, select."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.config.section import DEVICE, PART, REVISION, EncoderRole, Section


class RecaptionConfig(Section):
    """Section `recaption`: captions for images that come without one. The model is that of section `caption`."""

    max_new_tokens: int = Field(ge=1, description="Longest caption, tokens.")
    batch_images: int = Field(ge=1, description="Images in one call of the model, a count.")
    chunk_images: int = Field(
        256,
        ge=1,
        description="Images in one output file, a count. Work resumes at the last complete file, and parts are made of "
        "whole files.",
    )
    budget_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens that one run spends on captions of images. When they are used up, the run continues "
        "with what is finished. Empty: no limit.",
    )
    refused_share_max: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest share of a part's images that the model's server or processor may refuse, 0 to 1. "
        "Above it, and above three, the part fails.",
    )
    part_images: int = Field(50_000, ge=1, description="Images without a caption in one part, a count: " + PART)


class EncoderConfig(Section):
    """One encoder, an entry of `embed.encoders`."""

    model: str = Field(
        description="Model: a Hugging Face name, a folder, or timm:NAME or open_clip:NAME for these libraries. Of kind "
        "tfidf: `plain`, or a folder that `python -m tasks fit_words` wrote."
    )
    revision: str | None = Field(None, description=REVISION)
    kind: Literal["image", "text", "tfidf"] = Field(
        description="What it encodes: the image, the image's caption (text), or the caption's runs of 1 to 6 words, "
        "without a model (tfidf)."
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="Number format of the weights on a GPU. On a CPU they are always float32."
    )
    cpu_dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="Number format of the matrix products on a CPU; bfloat16 and int8 are faster where the processor "
        "supports them. Vectors of different formats are never mixed in one search.",
    )


class Window(Section):
    """A range of cosine similarity: pairs with low <= similarity < high are candidates."""

    low: float = Field(ge=-1, le=1, description="Lowest cosine similarity of a pair, -1 to 1 (included).")
    high: float = Field(
        ge=-1, le=1.01, description="Similarity from which two images count as near-copies, not as a pair (excluded)."
    )

    @model_validator(mode="after")
    def _require_low_below_high(self) -> Window:
        if self.low >= self.high:
            raise ValueError(
                f"'low' is {self.low} and 'high' is {self.high}: no similarity is at least low and below high; "
                "give a low below high (`python -m tasks calibrate` proposes both)"
            )
        return self


class NextEncoderConfig(EncoderConfig):
    """The encoder that is to follow one of `embed.encoders`, an entry of `embed.next`.

    Its window counts from the version on in which it takes over (`python -m tasks calibrate` proposes it).
    """

    window: Window
    budget: int | None = Field(
        None,
        ge=1,
        description="Most images of earlier versions that one run encodes with it, in whole shards, the oldest first, "
        "a count. New images are always encoded. Empty: all of them at once.",
    )


class EmbedConfig(Section):
    """Section `embed`."""

    preprocess: Literal["stock", "fast"] = Field(
        "stock",
        description="How images are prepared: stock (the model's own processor) or fast (ours, several times faster, "
        "slightly different pixels). Calibrate the windows with the same choice.",
    )
    encoders: dict[EncoderRole, EncoderConfig] = Field(
        description="The encoders by role: semantic (what an image shows), pattern (how it looks), caption "
        "(its text), and optionally words (a second encoder of the text, such as kind tfidf, beside caption)."
    )
    next: dict[EncoderRole, NextEncoderConfig] | None = Field(
        None,
        description="Encoders to change to, by role. Their index grows beside the one in use; in the version in which "
        "it holds every image, pairs are mined by it. Empty: none changes.",
    )
    batch_images: int = Field(ge=1, description="Images or captions in one call of the model, a count.")
    readers: int = Field(
        1,
        ge=1,
        description="Threads that read and decode the next batches while the model works, a count. With a GPU, use as "
        "many as there are cores.",
    )
    part_images: int = Field(
        200_000, ge=1, description="New images in one part of an encoder's work, a count, in whole shards: " + PART
    )
    device: str = Field(description=DEVICE)


class MineConfig(Section):
    """Section `mine`."""

    neighbours: int = Field(ge=1, description="Nearest images that are searched for each query image (top-k), a count.")
    windows: dict[EncoderRole, Window] = Field(
        description="Range of cosine similarity per encoder. Encoders differ widely: calibrate each on your own images "
        "(`python -m tasks calibrate`)."
    )
    backend: Literal["blocked", "torch", "faiss-flat", "faiss-ivf", "faiss-hnsw"] = Field(
        description="Search method. blocked, torch and faiss-flat are exact and give the same rows; torch runs on a "
        "GPU too; faiss-ivf and faiss-hnsw are approximate."
    )
    memory_mib: int = Field(
        1024, ge=1, description="Memory that the search may take beside the vectors and the result, MiB."
    )
    part_images: int = Field(
        500_000, ge=1, description="New images in one part of an encoder's search, a count: " + PART
    )


class SelectConfig(Section):
    """Section `select`."""

    pairs_per_query: int = Field(ge=1, description="Most pairs that have the same query image, a count.")
    pairs_per_target: int = Field(ge=1, description="Most pairs that have the same target image, a count.")
    pairs_per_batch: int | None = Field(ge=1, description="Most pairs that one run adds, a count. Empty: no limit.")
    negatives: int = Field(
        ge=0, description="Mined hard negatives of a pair, a count. The query image is one more negative."
    )
    copy_similarity: dict[EncoderRole, float] = Field(
        description="Per encoder: cosine similarity from which two images count as copies of each other. A copy of "
        "the target is no negative. An encoder that is not listed uses the high end of its window."
    )
    negative_margin: float = Field(
        0,
        ge=0,
        description="Smallest distance (1 - cosine) of a negative to the target, as a multiple of the distance "
        "between query and target. 0: no such limit.",
    )
    drop_query_copies: bool = Field(
        False,
        description="Also leave out targets and negatives that any encoder takes for a copy of the query image "
        "(`copy_similarity`).",
    )
    same_content_min: dict[Literal["semantic", "pattern"], Annotated[float, Field(gt=0, le=1)]] | None = Field(
        None,
        description="Per image encoder: cosine similarity from which two images count as the same content in another "
        "shot; such pairs are left out. `python -m tasks calibrate --same-content` proposes it. Empty: no limit.",
    )
    both_directions: bool = Field(
        False,
        description="Add every pair in both directions, as two pairs; where the quotas leave no room for both, neither "
        "is added.",
    )
    pairs_per_encoder: dict[EncoderRole, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Per encoder: most pairs of one run that it mined, a count. An encoder that is not listed has no "
        "limit.",
    )
    pairs_per_source: int | None = Field(
        None,
        ge=1,
        description="Most pairs of one run whose query image is from the same source, a count. Empty: no limit.",
    )
    nearest_share: float = Field(
        ge=0,
        le=1,
        description="Largest share of a run's pairs whose target is the query's nearest image by the semantic encoder "
        "(such a target is found without reading the text), 0 to 1.",
    )
    bands: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="Weights of equal bands of a query's window, the nearest band first: its pairs are drawn over the "
        "bands with these weights. Empty: no bands, pairs are taken in the order of `agreement`.",
    )
    agreement: Literal["rank", "encoders"] = Field(
        description="Which candidates are taken first when there are no bands: rank (the nearest, by the reciprocal "
        "ranks of all encoders) or encoders (those that most encoders mined, at any distance)."
    )
    bands_by: Literal["rank", "similarity", "differences"] = Field(
        description="What the bands divide: rank (0 to mine.neighbours) or similarity (the window from high to low), "
        "by the encoder that ranks the pair best; or differences (the first band are pairs of one difference, the "
        "second of two, as `differences` estimates them; without such an estimate there are no bands).",
    )
    differences: str | None = Field(
        description="File with an estimate of how many things differ between two images, fitted to the encoders by "
        "`python -m tasks calibrate --differences`. Empty, or fitted to other encoders: nothing is estimated.",
    )
    accepted_min: float = Field(
        ge=0,
        le=1,
        description="Least chance that the judge accepts a pair, as `differences` estimates it, 0 to 1. Pairs below it "
        "are not described.",
    )
    memory_mib: int = Field(
        1024,
        ge=1,
        description="Memory that the selection may take beside what it holds for each image, MiB. The rest lies on "
        "disk (.run/select); the result is the same for any value.",
    )
