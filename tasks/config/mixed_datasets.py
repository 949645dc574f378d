"""Parameters of a further dataset that the retrieval model is trained on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.config.section import NAME_PATTERN, ROW_TASKS, Section


class MixedDatasetConfig(Section):
    """One further training dataset, an entry of `train.datasets`."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the dataset, used in reports.")
    format: Literal["megapairs", "mmeb", "rows"] = Field(
        description="Format of its records: megapairs (q_img, q_text, t_img, hns), mmeb (VLM2Vec: qry, "
        "qry_image_path, pos_text, pos_image_path, neg_text, neg_image_path; v2: qry_inst, qry_text, qry_img_path, "
        "tgt_inst, tgt_text, tgt_img_path) or rows (the version's own rows for other tasks, `version.further_rows`)."
    )
    path: str = Field(
        description="A JSONL or Parquet file, a folder of either, a folder of `Dataset.save_to_disk`, or, with "
        "`split`, what `datasets.load_dataset` takes. Of format rows the task, such as caption_to_image."
    )
    subset: str | None = Field(None, description="Subset (configuration) for `datasets.load_dataset`.")
    split: str | None = Field(
        None, description="Split for `datasets.load_dataset`, such as original. Empty: `path` is read as files."
    )
    images: str = Field(
        "", description="Folder to which the image paths of the records are relative. Of format rows empty."
    )
    instruction: str | None = Field(
        None,
        description="Task instruction of its queries, for a multimodal language model. Empty: the model's own for "
        "megapairs; none for mmeb, whose texts hold each task's.",
    )
    weight: float = Field(
        1.0,
        ge=0,
        description="Share of the batches that come from this dataset, relative to the other weights. 0: none does, "
        "and its captions are only held beside the others' (`held_beside`).",
    )
    symmetric: bool = Field(
        False,
        description="Contrast each target with the batch's queries too, as CLIP's loss does; for pairs of text and "
        "image, so that the model finds the text of an image as well.",
    )
    contrast: bool = Field(
        True,
        description="Contrast its queries with the batch's candidates. Off: its batches only hold the model to its "
        "base, by `keep_base`.",
    )
    keep_base: float = Field(
        0.0,
        ge=0,
        description="Weight of 1 minus the cosine between the features by the model in training and by the base model, "
        "of a caption, and of the batch's images where the image tower is trained: what the base knows of captions is "
        "kept. Of rows caption_to_image, for a model of the CLIP type; a copy of the base is held in memory.",
    )
    held_beside: int = Field(
        0,
        ge=0,
        description="So many of its captions, drawn anew for each step, are held to the base in the steps of the other "
        "datasets too, with weight `keep_base`, a count. 0: none.",
    )
    held_spliced: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the captions of `held_beside`, 0 to 1, that are spliced: the first words of one caption "
        "and the last words of another. The base is held on more texts than there are captions.",
    )

    @model_validator(mode="after")
    def _check_what_is_kept(self) -> MixedDatasetConfig:
        if not self.contrast and (self.symmetric or not self.keep_base):
            raise ValueError(
                f"'contrast' of '{self.name}' is off, with keep_base {self.keep_base:g} and symmetric "
                f"{str(self.symmetric).lower()}; expected keep_base above 0, which is then all that its batches teach, "
                "and symmetric false; or switch contrast on"
            )
        if self.held_beside and not self.keep_base:
            raise ValueError(
                f"'held_beside' of '{self.name}' is {self.held_beside}, and keep_base 0; expected keep_base above 0, "
                "or held_beside 0"
            )
        if not self.held_beside and (self.held_spliced or not self.weight):
            raise ValueError(
                f"'{self.name}' has held_spliced {self.held_spliced:g} and weight {self.weight:g}, and held_beside 0; "
                "expected held_beside above 0, or held_spliced 0 and a weight above 0"
            )
        if self.keep_base and (self.format, self.path) != ("rows", "caption_to_image"):
            raise ValueError(
                f"'keep_base' of '{self.name}' is {self.keep_base:g}, and its queries may have images; expected 0, or "
                "format rows with path caption_to_image"
            )
        return self

    @model_validator(mode="after")
    def _check_where_its_records_are(self) -> MixedDatasetConfig:
        if self.format != "rows":
            if not self.images:
                raise ValueError(f"'images' of '{self.name}' is empty; name the folder of the records' image files")
        elif self.path not in ROW_TASKS or self.images or self.split or self.subset:
            raise ValueError(
                f"'{self.name}' is of format rows and has path {self.path!r}, images {self.images!r}, split "
                f"{self.split!r}, subset {self.subset!r}; expected one of {list(ROW_TASKS)} as `path` and no other: "
                "the rows and their images are the version's own"
            )
        return self
