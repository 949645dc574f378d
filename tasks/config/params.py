"""The whole of params.yaml: all sections, and the check that they do not contradict each other."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from tasks.config import checks
from tasks.config.gates import ValidateConfig
from tasks.config.ingest import IngestConfig
from tasks.config.pairs import EmbedConfig, MineConfig, RecaptionConfig, SelectConfig
from tasks.config.renew import RenewConfig
from tasks.config.section import RowTask, Section
from tasks.config.texts import CaptionConfig, JudgeConfig
from tasks.config.training import EvaluateConfig, PromoteConfig, TrainConfig


class OpenRunConfig(Section):
    """Section `open_run`: the run itself."""

    dataset: str = Field(min_length=1, description="Name of the dataset, shown in mails and cards.")
    date: str | None = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="Date of the run, YYYY-MM-DD. Empty: today.")
    batch: str | None = Field(
        pattern=r"^\d{4}\.\d{2}\.\d{2}(\.\d+)?$",
        description="Name of the batch and of its version, YYYY.MM.DD[.n]. Empty: the next free name of the date.",
    )
    limit: int | None = Field(
        ge=1,
        description="Most new images that the run takes in, a count: files that are dropped do "
        "not count. Sources are taken in order of name. Empty: no limit.",
    )
    dry_run: bool = Field(description="Run all stages but publish nothing: no version, no training.")
    takedown: tuple[str, ...] = Field(
        (),
        description="Entries of a takedown list, one a line: SHA-256, perceptual hash, source_uri, address or "
        "source:NAME. Such a run reads no source: it withdraws these images and what the lists name, and publishes "
        "that. Its own params.yaml does not repeat the entries. Empty: an ordinary run.",
    )
    seed: int = Field(ge=0, description="Seed of every random choice of the run.")
    threads: int = Field(
        ge=1,
        description="CPU threads of each model, a count. On a CPU another number may change the last digits of a "
        "result.",
    )

    @field_validator("takedown", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        """A text is its lines: the REST API may send one."""
        return tuple(value.splitlines()) if isinstance(value, str) else value or ()


class VersionConfig(Section):
    """Section `version`."""

    license: str = Field(description="Licence of the dataset as its card states it.")
    contact: str | None = Field(
        None,
        description="Whom to write to, a mail address or a page, about the dataset and about images that should leave "
        "it. The card states it. Empty: the card says that none is stated.",
    )
    embed_images: bool = Field(
        description="Also publish a Parquet export with the images inside. Suits small datasets only."
    )
    further_rows: tuple[RowTask, ...] | None = Field(
        None,
        description="Also publish rows for these other tasks, made of the same images, texts and judgements without "
        "asking a model: image_to_caption, caption_to_image, description_to_pair, difference_classification, "
        "which_image_fits. Each is a configuration of the card. Empty: none.",
    )
    gallery_triplets: int = Field(
        ge=0, description="Triplets on the version's gallery page, drawn by the seed, a count."
    )
    loader_files: int = Field(
        16,
        ge=1,
        description="Files that the triplets (and their export with images) are split into, a count, where each gets "
        "`loader_rows_min` rows: loaders give each worker whole files, so that as many workers can read at once.",
    )
    loader_rows_min: int = Field(1000, ge=1, description="Least triplets of one such file, a count.")
    citation: str = Field(
        "", description="BibTeX entry (or text) to cite the dataset by. Empty: that of MegaPairs, which it follows."
    )


class Params(Section):
    """All parameters of a run, resolved."""

    profile: str = Field(description="Name of the profile that was applied (tasks/profiles).")
    open_run: OpenRunConfig
    ingest: IngestConfig
    recaption: RecaptionConfig
    embed: EmbedConfig
    mine: MineConfig
    select: SelectConfig
    caption: CaptionConfig
    judge: JudgeConfig
    renew: RenewConfig
    validate_: ValidateConfig = Field(alias="validate")
    version: VersionConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    promote: PromoteConfig

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Params:
        gates = self.validate_
        contradictions = [
            *checks.ingest_contradictions(self.ingest),
            *checks.pair_contradictions(self.embed, self.mine, self.select),
            *checks.text_contradictions(self.caption, self.judge),
            *checks.negatives_contradictions(self.select, self.judge, self.train),
            *checks.training_contradictions(self.train),
            *checks.pairs_gate_contradictions(gates.pairs, self.mine, self.select),
            *checks.triplets_gate_contradictions(gates.triplets, self.caption, self.judge, self.select),
            *checks.promotion_contradictions(self.train, self.promote),
            *checks.images_gate_contradictions(gates.images, self.open_run.limit),
        ]
        if contradictions:
            raise ValueError("; ".join(contradictions))
        return self
