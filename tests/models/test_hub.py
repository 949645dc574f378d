"""Errors of loading a model: what keeps the hub out is named, and only what may pass is retried."""

import pytest

from tasks.errors import ConfigError, TransientError
from tasks.models.hub import load_errors

AWAY = "We couldn't connect to 'https://huggingface.co' to load the files"


def test_a_hub_that_is_switched_off_is_no_passing_fault_and_the_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    why = r"openai/clip.*HF_HUB_OFFLINE=1.*HF_HUB_OFFLINE=0 make ui"
    with pytest.raises(ConfigError, match=why), load_errors("openai/clip", "embed.encoders.semantic.model"):
        raise OSError(AWAY)


def test_a_hub_that_is_away_may_come_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(TransientError, match="the hub cannot be"), load_errors("openai/clip", "train.base_model"):
        raise OSError(AWAY)
