"""The kind of change that an instruction states: what a judge's calibration goes by.

Where the description lists differences, the kind is that of the one the text states, or `several`. Where descriptions
are prose, the prompt set may tell kinds by the text: kinds.json, an ordered list of [kind, regular expression].
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tasks.errors import ConfigError
from tasks.prompts.styles import is_partial, split_style

ANY, SEVERAL = "any", "several"
FILE = "kinds.json"
FOLDER = Path(__file__).parent


@lru_cache(maxsize=8)
def read_kinds(prompts: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(kind, pattern) of a prompt set in order; empty where it has no kinds.json.

    Args:
        prompts: the set's name.
    Raises:
        ConfigError: the file is no list of [kind, regular expression].
    """
    path = FOLDER / prompts / FILE
    if not path.is_file():
        return ()
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return tuple((str(kind), re.compile(pattern)) for kind, pattern in rows)
    except (ValueError, TypeError, re.error) as error:
        raise ConfigError(f"{path}: {error}; expected a list of [kind, regular expression]") from None


def kind_of(text: str, style: str, differences: Sequence[str], prompts: str) -> str:
    """The kind of change that an instruction states; `ANY` where it cannot be told.

    Args:
        text: the instruction.
        style: its style; a partial one states the difference of its number.
        differences: of the pair's description, as `kind: source -> target`; empty where it is prose.
        prompts: name of the prompt set.
    """
    if differences:
        number = split_style(style)[1] if is_partial(style) else len(differences)
        if not is_partial(style) and number > 1:
            return SEVERAL
        return differences[min(number, len(differences)) - 1].partition(":")[0]
    return next((kind for kind, pattern in read_kinds(prompts) if pattern.search(text)), ANY)
