"""Parameters of the stages that write and judge instructions: caption and judge."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tasks.config.section import DEVICE, REVISION, Section
from tasks.config.urls import check_server_urls, join_urls

ENGINE = (
    "How models run: transformers (in this process), openai (an OpenAI-compatible server such as vLLM, see the url "
    "keys) or vllm (vLLM in this process)."
)
PARTS = (
    "Pairs in one part, a count: one Airflow task captions them, then one judges them; workers share the parts. "
    "No effect on the result."
)
CHUNK = "Pairs in one output file, a count. Work resumes at the last complete file, and parts are made of whole files."
IN_FLIGHT = (
    "Most simultaneous requests to one server, a count. Fewer are sent while the server answers that it is busy."
)
REFUSED = (
    "Largest share of a part's pairs that the model's server or processor may refuse, 0 to 1. "
    "Above it, and above three, the part fails."
)
OUTAGE = (
    "How long requests are tried while no server answers at all, seconds. After it the task fails and is tried again."
)
TIMEOUT = "Longest wait for a server's answer, seconds. After it the request is sent again."
URL = (
    "Address of the server that runs `model`, for engine openai, e.g. http://host:8000/v1; several servers of one "
    "model as a list or separated by commas. Keys are set outside (MEGAPAIRS_MODEL_API_KEY)."
)
ServerUrls = Annotated[str, BeforeValidator(join_urls), AfterValidator(check_server_urls)]


class CaptionConfig(Section):
    """Section `caption`."""

    engine: Literal["transformers", "openai", "vllm"] = Field(description=ENGINE)
    model: str = Field(
        description="Vision-language model that describes how the two images of a pair differ: a Hugging Face name or "
        "a folder."
    )
    revision: str | None = Field(description=REVISION)
    writer: str = Field(
        description="Language model that turns a description into instructions: a Hugging Face name or a folder."
    )
    writer_revision: str | None = Field(description=REVISION)
    url: ServerUrls = Field(description=URL)
    writer_url: ServerUrls = Field(description="The same for the server that runs `writer`.")
    prompts: str = Field(description="Prompt set: the name of a folder in tasks/prompts, e.g. tiny, plain, standard.")
    styles: tuple[str, ...] = Field(
        min_length=1,
        description="Styles of the instructions; each pair gets one instruction per style. `short 2` states the "
        "second difference of a pair, with prompt sets that list differences.",
    )
    instructions_min: int = Field(
        ge=1, description="Fewest different instructions of a pair, a count. A pair with fewer is dropped."
    )
    max_new_tokens: int = Field(ge=1, description="Longest reply of a model, tokens.")
    max_chars: int = Field(
        ge=1, description="Longest instruction, characters. A longer reply is asked for again, then dropped."
    )
    batch_pairs: int = Field(ge=1, description="Pairs in one call of the model, a count.")
    chunk_pairs: int = Field(ge=1, description=CHUNK)
    part_pairs: int = Field(ge=1, description=PARTS)
    in_flight: int = Field(16, ge=1, description=IN_FLIGHT)
    timeout_s: float = Field(300.0, gt=0, description=TIMEOUT)
    outage_s: float = Field(600.0, ge=0, description=OUTAGE)
    refused_share_max: float = Field(0.2, ge=0, le=1, description=REFUSED)
    languages: tuple[str, ...] = Field(
        ("en",),
        min_length=1,
        description="Languages of the instructions, ISO 639-1 codes. Each pair gets one of them, drawn by the seed.",
    )
    demonstrations: int = Field(
        5,
        ge=0,
        description="Examples in the writer's prompt, drawn by the seed for each pair, a count. Only for prompt sets "
        "whose write.txt has a place for them.",
    )
    leak_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="A text that repeats at least this share of the words of the target's caption is dropped as "
        "`leaks_target`. Empty: only a text that repeats the whole caption is.",
    )
    source_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="A text that has at least this share of the words which the description uses for the query image "
        "alone is dropped as `leaks_source`. Empty: not checked.",
    )
    description_words: tuple[int, int] = Field(
        (60, 100),
        description="Fewest and most words that a description is asked for, drawn by the seed for each pair. Only for "
        "prompt sets that ask for a number of words.",
    )
    differences_max: int | None = Field(
        None,
        ge=1,
        description="Most differences that a pair's description may list, a count; a pair with more is dropped as "
        "`too_different`. Only for prompt sets that list differences. Empty: no limit.",
    )
    check_differences: bool = Field(
        False,
        description="Ask for each difference of a description on its own, in both images, and for what is left out; "
        "texts state confirmed differences alone. Only for prompt sets with check.txt and missing.txt, e.g. standard.",
    )
    reverse: bool = Field(
        False, description="Also write instructions from each pair's target back to its query: additional triplets."
    )
    same_text_pairs: int | None = Field(
        None,
        ge=1,
        description="A text that more than this many pairs of one chunk share is dropped as `same_for_many`, a count. "
        "Empty: not checked.",
    )
    canaries: str | None = Field(
        description="Folder with canaries.csv (query, target, expect): pairs with a known difference that the model "
        "must describe at the start of each part. Empty: no such check."
    )
    canaries_min: float = Field(
        0.6,
        ge=0,
        le=1,
        description="Smallest share of canaries whose difference is described, 0 to 1. Below it the part fails.",
    )
    blank_max: float = Field(
        0.34,
        ge=0,
        le=1,
        description="Largest share of canaries that a description of two blank images fits, 0 to 1. Above it the part "
        "fails: the model does not look at its images.",
    )
    budget_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens that one run spends on captions. When they are used up, the run continues with what "
        "is finished. Empty: no limit.",
    )
    tokens_per_s: float | None = Field(
        None,
        gt=0,
        description="Measured speed of one GPU, prompt and output tokens per second. Only used by `python -m tasks "
        "plan` to estimate time and cost.",
    )
    device: str = Field(description=DEVICE)


class JudgeConfig(Section):
    """Section `judge`."""

    engine: Literal["transformers", "openai", "vllm"] = Field(description=ENGINE)
    url: ServerUrls = Field(description=URL)
    model: str = Field(description="Vision-language model that judges: a Hugging Face name or a folder.")
    revision: str | None = Field(description=REVISION)
    calibration: str | None = Field(
        None,
        description="JSON file that turns the judge's P(yes) for a target into the probability that it fits, by kind "
        "of change; `python -m tasks judge_calibrate` writes it. Empty: P(yes) is taken as it is.",
    )
    threshold: float = Field(
        ge=0,
        le=1,
        description="An instruction is kept when the target's P(yes), calibrated where there is a calibration, is at "
        "least this, 0 to 1. `python -m tasks judge_calibrate` learns it from labelled questions.",
    )
    negative_threshold: float = Field(
        ge=0,
        le=1,
        description="A negative whose P(yes) for an instruction is at least this fits it too: a false negative, which "
        "is removed, 0 to 1.",
    )
    instructions_min: int = Field(
        ge=1, description="Fewest instructions of a pair that the judge must accept, a count. Else the pair is dropped."
    )
    batch_questions: int = Field(ge=1, description="Questions in one call of the model, a count.")
    chunk_pairs: int = Field(
        ge=1,
        description="Most captioned pairs that are judged at once, a count: it bounds memory. Output files and parts "
        "are those of caption.",
    )
    in_flight: int = Field(16, ge=1, description=IN_FLIGHT)
    timeout_s: float = Field(300.0, gt=0, description=TIMEOUT)
    outage_s: float = Field(600.0, ge=0, description=OUTAGE)
    refused_share_max: float = Field(0.2, ge=0, le=1, description=REFUSED)
    negative_margin: float | None = Field(
        None,
        ge=0,
        le=1,
        description="A negative whose P(yes) is above the target's minus this is a false negative too, 0 to 1. Empty: "
        "not checked.",
    )
    negatives: int | None = Field(
        None,
        ge=1,
        description="Mined negatives that a triplet keeps, a count. The further ones of select.negatives replace "
        "false negatives. Empty: all are kept.",
    )
    labelled: str | None = Field(
        description="CSV or Parquet with questions of known answer (query, candidate, instruction, fits) on which the "
        "judge is measured before it works. Empty: not measured."
    )
    accuracy_min: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Smallest share of `labelled` that the judge must get right at `threshold`, 0 to 1. Below it the "
        "part fails.",
    )
    false_yes_max: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest share of the wrong candidates in `labelled` that the judge may accept, 0 to 1. Above it "
        "the part fails.",
    )
    auc_min: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Smallest area under the ROC curve on `labelled`, 0 to 1 (0.5 is chance). Below it the part fails.",
    )
    shortcut_share_max: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Largest share of a chunk's triplets whose target is found by the text or the image alone, 0 to "
        "1; more are dropped as `shortcut`. Empty: such triplets are only marked.",
    )
    shortcut_pictures: int = Field(
        20_000,
        ge=2,
        description="Most images, drawn by the seed, among which the text or the image alone must find the target, a "
        "count.",
    )
    device: str = Field(description=DEVICE)
