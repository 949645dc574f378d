"""Put windows and other values into params.yaml: comments, order and quotes of the rest of the file stay."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
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
    return _dump(yaml, document)


def set_values(text: str, values: Mapping[str, Any], remove: Sequence[str] = ()) -> str:
    """A YAML file's text with values at dotted keys replaced or added; the rest stays.

    Args:
        text: of params.yaml, or of a profile.
        values: dotted key -> value; a list of mappings is written with one mapping a line.
        remove: names at the top that go.
    Raises:
        ConfigError: a key leads through something that is no mapping.
    """
    yaml = _round_trip_yaml()
    document = yaml.load(text) or CommentedMap()
    for name in remove:
        document.pop(name, None)
    for dotted, value in values.items():
        *above, last = dotted.split(".")
        block = document
        for key in above:
            block = block.setdefault(key, CommentedMap())
            if not isinstance(block, CommentedMap):
                raise ConfigError(f"{dotted}: '{key}' is no mapping; expected a section; mend the file by hand")
        block[last] = _flow(value)
    return _dump(yaml, document)


def _flow(value: Any) -> Any:
    """A list of mappings as one mapping a line, anything else as it is."""
    if isinstance(value, list):
        return CommentedSeq([_flow(entry) for entry in value])
    if isinstance(value, Mapping):
        mapping = CommentedMap(value)
        mapping.fa.set_flow_style()
        return mapping
    return value


def _dump(yaml: YAML, document: Any) -> str:
    changed = io.StringIO()
    yaml.dump(document, changed)
    return changed.getvalue()
