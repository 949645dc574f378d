"""Loading by engine: what cannot be loaded is named."""

from pathlib import Path

import pytest

from tasks.errors import ConfigError
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner, load_writer


def test_a_folder_without_a_model_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_captioner(LlmConfig(str(tmp_path)))


def test_an_unknown_engine_is_named():
    for load in (load_captioner, load_writer):
        with pytest.raises(ConfigError, match="known are 'transformers', 'openai', 'vllm'"):
            load(LlmConfig("x", engine="llama.cpp"))


def test_a_served_model_needs_a_url():
    with pytest.raises(ConfigError, match="needs a url"):
        load_captioner(LlmConfig("x", engine="openai"))
