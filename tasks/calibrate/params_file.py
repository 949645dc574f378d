"""Put windows into params.yaml: comments, order and quotes of the rest of the file stay."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.representer import RoundTripRepresenter

from tasks.config import Window
from tasks.errors import ConfigError


class _Representer(RoundTripRepresenter):
    """Writes None as `null`, as params.yaml does."""

    def represent_none(self, data: Any) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def _round_trip_yaml() -> YAML:
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 1_000_000  # no line is wrapped anew
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def set_windows(text: str, windows: Mapping[str, Window]) -> str:
    """params.yaml's text with `mine.windows` replaced.

    Args:
        text: of params.yaml.
        windows: encoder's role -> window.
    Raises:
        ConfigError: no section `mine`.
    """
    yaml = _round_trip_yaml()
    document = yaml.load(text)
    if not isinstance(document, CommentedMap) or not isinstance(mine := document.get("mine"), CommentedMap):
        raise ConfigError("params.yaml: no section 'mine' to put windows in; add `mine:\\n  windows: {}`")
    if not isinstance(mine.get("windows"), CommentedMap):
        mine["windows"] = CommentedMap()
    block = mine["windows"]  # changed in place: comments hang on its keys
    block.fa.set_block_style()
    for role in [role for role in block if role not in windows]:
        del block[role]
    for role, window in windows.items():
        bounds = CommentedMap(low=window.low, high=window.high)
        bounds.fa.set_flow_style()
        block[role] = bounds
    changed = io.StringIO()
    yaml.dump(document, changed)
    return changed.getvalue()
