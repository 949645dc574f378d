"""What every section of the parameters is built on: the base class and the roles of the encoders."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

EncoderRole = Literal["semantic", "pattern", "caption", "words"]
# The encoders that mine pairs, by role, in the order of all columns and arrays that hold one value for each.
MINER_ROLES: tuple[str, ...] = get_args(EncoderRole)
# Those that every run of the DAG has; `words` is a further one, which stages embed and mine do beside `caption`.
ENCODER_ROLES = MINER_ROLES[:3]
COMPANIONS = {"caption": "words"}

# Further rows that a version may publish beside its triplets, by task (tasks/publish/further_rows.py).
RowTask = Literal[
    "image_to_caption", "caption_to_image", "description_to_pair", "difference_classification", "which_image_fits"
]
ROW_TASKS: tuple[str, ...] = get_args(RowTask)
LOCKED_TASKS = frozenset({"caption_to_image", "which_image_fits"})  # of single images: the locked phase takes them

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
DEVICE = "Where the model runs: auto (a GPU if there is one, else the CPU), cpu, cuda or cuda:N."
REVISION = "Revision of the model (commit, tag or branch on the hub); empty: the newest, or a local folder as it is."

PART = "one Airflow task each; workers share the parts. No effect on the result."


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
