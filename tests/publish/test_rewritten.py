"""A version that is older than a change of encoder is rewritten with the encoders and windows of then."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.config import load_params, parse_params, read_raw, resolve
from tasks.mine.stage import search_spec
from tasks.publish import open_run
from tasks.publish.open_run import Deployment, RunRequest, plan_run
from tasks.publish.rewritten import with_encoders_of

THEN = {"low": 0.61, "high": 0.97}
OLD = {"model": "old-clip", "revision": None, "kind": "image", "dtype": "float32", "cpu_dtype": "float32"}
RECORD: dict[str, Any] = {
    "version": "2026.11.16",
    "date": "2026-11-16",
    "params": {
        "embed": {"encoders": {"semantic": {**OLD, "gone_since": 1}, "left": OLD}, "next": {"semantic": {**OLD}}},
        "mine": {"neighbours": 3, "windows": {"semantic": THEN, "left": THEN, "pattern": None}},
    },
}


def deployed() -> dict[str, Any]:
    """After the change: another encoder has the role, with another window, and a third one is to follow."""
    raw = resolve(read_raw(Path("params.yaml")), "test", {"mine": {"windows": {"semantic": {"low": 0.2, "high": 0.9}}}})
    raw["embed"]["encoders"]["semantic"] = {"model": "new-clip", "kind": "image"}
    raw["embed"]["next"] = {"semantic": {"model": "third", "kind": "image", "window": {"low": 0.3, "high": 0.9}}}
    return raw


def test_encoders_and_windows_are_those_of_then_and_all_else_is_as_deployed():
    raw = deployed()
    params = parse_params(with_encoders_of(raw, RECORD))
    window = search_spec(params, "semantic").window
    assert (window.low, window.high) == (THEN["low"], THEN["high"])
    assert params.embed.encoders["semantic"].model == "old-clip" and params.embed.next is None
    before = parse_params(raw)
    assert "left" not in params.embed.encoders and params.mine.windows["pattern"] == before.mine.windows["pattern"]
    assert params.mine.neighbours == before.mine.neighbours and params.select == before.select
    assert parse_params(with_encoders_of(raw, {})).embed.encoders == before.embed.encoders  # an older version.json
    assert with_encoders_of(raw, None) == raw


@pytest.mark.parametrize("tag", ["dataset/2026.11.16", None])
def test_the_run_of_a_purge_is_opened_with_them(
    deployment: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tag: str | None
):
    clone = deployment / "dataset"
    monkeypatch.setattr(open_run, "find_data_commit", lambda *_: "HEAD")
    monkeypatch.setattr(open_run, "version_at", lambda *_: RECORD)
    conf = {"takedown": ["f" * 64], "date": "2026-11-16", "batch": "2026.11.16.2", "profile": "test"}
    plan = plan_run(RunRequest("purge 1", "dataset", conf, tag), Deployment(clone, tmp_path))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(plan.raw))
    window = load_params(tmp_path / "params.yaml").mine.windows["semantic"]
    assert ((window.low, window.high) == (THEN["low"], THEN["high"])) == (tag is not None)
