"""Parameters: one class per section of params.yaml; unknown keys are refused, every number has a unit and a sentence.

params.yaml holds the default of each parameter that a deployment may want to see, tasks/profiles named changes to them.
A parameter has one default: in params.yaml, or where that does not name it, in the class here. `open_run` applies the
profile and the trigger form's values and writes the resolved file into the run's worktree; stages read that one.

    section.py    base class, roles of the encoders          checks.py     parameters that contradict each other
    sources.py    one source of images                       params.py     all sections together
    ingest.py  pairs.py  texts.py  gates.py  training.py     profiles.py   named sets of parameters
    renew.py      the stages' sections                       resolve.py    from params.yaml to checked parameters

Imports neither numpy nor torch, so that DAG files, which Airflow parses every few seconds, can use it.
"""

from tasks.config.checks import model_type_contradictions, training_run_contradictions
from tasks.config.gates import ImagesGateConfig, PairsGateConfig, TripletsGateConfig, ValidateConfig
from tasks.config.ingest import FilterConfig, IngestConfig
from tasks.config.mixed_datasets import MixedDatasetConfig
from tasks.config.pairs import (
    EmbedConfig,
    EncoderConfig,
    MineConfig,
    NextEncoderConfig,
    RecaptionConfig,
    SelectConfig,
    Window,
)
from tasks.config.params import OpenRunConfig, Params, VersionConfig
from tasks.config.profiles import is_profile, parse_raw, uncalibrated_windows
from tasks.config.renew import Condition, RenewConfig, RenewRows, parse_where
from tasks.config.resolve import is_resolved, load_params, overlay, parse_params, read_raw, resolve
from tasks.config.section import (
    COMPANIONS,
    ENCODER_ROLES,
    LOCKED_TASKS,
    MINER_ROLES,
    ROW_TASKS,
    EncoderRole,
    Section,
)
from tasks.config.sources import (
    ARROW_TABLES,
    PACKED_TABLES,
    PACKED_TARS,
    TABLE_SUFFIXES,
    TEXT_TABLES,
    SourceConfig,
    expand_sources,
)
from tasks.config.texts import CaptionConfig, JudgeConfig
from tasks.config.training import (
    BenchmarkConfig,
    EvaluateConfig,
    LoraConfig,
    PromoteConfig,
    TrainConfig,
)

__all__ = [
    "COMPANIONS",
    "ENCODER_ROLES",
    "LOCKED_TASKS",
    "MINER_ROLES",
    "ROW_TASKS",
    "ARROW_TABLES",
    "PACKED_TABLES",
    "PACKED_TARS",
    "TABLE_SUFFIXES",
    "TEXT_TABLES",
    "BenchmarkConfig",
    "CaptionConfig",
    "Condition",
    "EmbedConfig",
    "EncoderConfig",
    "EncoderRole",
    "EvaluateConfig",
    "FilterConfig",
    "ImagesGateConfig",
    "IngestConfig",
    "JudgeConfig",
    "LoraConfig",
    "MineConfig",
    "MixedDatasetConfig",
    "NextEncoderConfig",
    "OpenRunConfig",
    "PairsGateConfig",
    "Params",
    "PromoteConfig",
    "RecaptionConfig",
    "RenewConfig",
    "RenewRows",
    "Section",
    "SelectConfig",
    "SourceConfig",
    "TrainConfig",
    "TripletsGateConfig",
    "ValidateConfig",
    "VersionConfig",
    "Window",
    "expand_sources",
    "is_profile",
    "is_resolved",
    "load_params",
    "model_type_contradictions",
    "overlay",
    "parse_params",
    "parse_where",
    "parse_raw",
    "read_raw",
    "resolve",
    "training_run_contradictions",
    "uncalibrated_windows",
]
