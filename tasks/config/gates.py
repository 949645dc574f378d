"""Parameters of stage validate: the numbers that the gates' suites in expectations/ use as `$PARAMETER`."""

from __future__ import annotations

from pydantic import Field

from tasks.config.section import Section

ROWS_MIN = "Fewest new {} of a run that brings any, a count. 0: no limit."


class GateConfig(Section):
    """Numbers that every table's suite has."""

    quarantined_share_max: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest share of a run's new rows that may break a row rule, 0 to 1. Such rows are quarantined "
        "and the run goes on; with a larger share it stops.",
    )
    free_rows: int = Field(
        3,
        ge=0,
        description="Rows (or files) that may break a row rule, be copies, unreadable or without a caption whatever "
        "their share, a count: a share of a small batch says little. A batch of several rows of which every one breaks "
        "a rule stops all the same.",
    )


class ImagesGateConfig(GateConfig):
    """Numbers of the suite expectations/images.json."""

    rows_min: float = Field(ge=0, description=ROWS_MIN.format("images"))
    duplicate_share_max: float = Field(
        ge=0, le=1, description="Largest share of exact and near-duplicates among the files of a run, 0 to 1."
    )
    unreadable_share_max: float = Field(
        ge=0,
        le=1,
        description="Largest share of files that are damaged, too large or too costly to decode, among the files of a "
        "run, 0 to 1.",
    )
    caption_share_min: float = Field(
        ge=0, le=1, description="Smallest share of new images that come with a caption, 0 to 1."
    )


class PairsGateConfig(GateConfig):
    """Numbers of the suite expectations/pairs.json; the windows themselves come from `mine.windows`."""

    rows_min: float = Field(ge=0, description=ROWS_MIN.format("pairs"))
    similarity_min: float = Field(
        ge=-1,
        le=1,
        description="Lowest value of a pair's highest cosine similarity over the encoders that mined it, -1 to 1. Each "
        "encoder's own similarity is checked against its window in mine.windows.",
    )
    similarity_max: float = Field(
        ge=-1,
        le=1.01,
        description="Highest value of a pair's highest cosine similarity over the encoders that mined it, -1 to 1.01.",
    )
    cosine_drop_max: float = Field(
        ge=0,
        description="Largest drop against the last version of the median cosine similarity between new images and "
        "their captions. A larger drop means captions that do not belong to their images.",
    )
    encoder_yield_min: float = Field(
        ge=0,
        description="Fewest candidates per new image of the encoder that mined fewest. Too few mean a window that does "
        "not suit the encoder or the images.",
    )


class TripletsGateConfig(GateConfig):
    """Numbers of the suite expectations/triplets.json."""

    rows_min: float = Field(ge=0, description=ROWS_MIN.format("triplets"))
    yes_min: float = Field(
        ge=0,
        le=1,
        description="Lowest P(yes) of a triplet's target over its instructions, 0 to 1. The gate checks this or "
        "judge.threshold, whichever is higher.",
    )
    yield_min: float = Field(ge=0, le=1, description="Smallest number of triplets per captioned pair of a run, 0 to 1.")
    instructions_min: float = Field(
        ge=1,
        description="Fewest instructions of a triplet, a count. The gate checks this or judge.instructions_min, "
        "whichever is higher.",
    )
    instructions_max: float = Field(ge=1, description="Most instructions of a triplet, a count.")
    yield_fall_max: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Largest fall of the share of captioned pairs that become triplets, against the median of the last "
        "four versions, relative to it, 0 to 1. Not checked with fewer than two versions or 50 triplets.",
    )
    shortcut_rise_max: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Largest rise of the share of triplets whose target the text or the image alone finds, against the "
        "median of the last four versions, 0 to 1. Not checked with fewer than two versions or 50 triplets.",
    )
    distinct_min: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Smallest share of different runs of three words among those of up to 1,000 new instructions, 0 to "
        "1. Not checked for fewer than 200 instructions.",
    )
    same_content_max: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Largest share of new instructions that have the words of another one of their triplet, but for "
        "those that carry the form of a request (English), 0 to 1. Styles that state one change in several forms make "
        "it large by design. Empty: no limit. Not checked for fewer than 200 instructions.",
    )


class ValidateConfig(Section):
    """Section `validate`: one entry per table."""

    images: ImagesGateConfig
    pairs: PairsGateConfig
    triplets: TripletsGateConfig
