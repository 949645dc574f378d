"""What a prompt set demands of the texts that its models write: rules.json, read here.

The file is optional, one JSON object of two lists of [what it is about, regular expression], letter case ignored:

    contradictions    a description or an instruction in which the expression is found contradicts itself: it removes
                      a thing and moves the same thing
    verbatim          what the expression finds in an instruction must stand in the description, word by word:
                      quoted writing, names

The expressions know the language and the form of the set's texts; the code knows neither. See docs/decisions/0191.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tasks.errors import ConfigError

FILE = "rules.json"
FIELDS = ("contradictions", "verbatim")


@dataclass(frozen=True)
class TextRules:
    """Rules of a prompt set; without any, every text passes.

    Attributes:
        contradictions: none of them may be found in a description or an instruction.
        verbatim: what they find in an instruction must be in its description.
    """

    contradictions: tuple[re.Pattern[str], ...] = ()
    verbatim: tuple[re.Pattern[str], ...] = ()

    def contradicts_itself(self, text: str) -> bool:
        """Whether a text says two things that cannot both be so."""
        return any(pattern.search(text) for pattern in self.contradictions)

    def verbatim_parts(self, text: str) -> list[str]:
        """What a text must take over from its description word by word, as it stands in the text."""
        return [match[0] for pattern in self.verbatim for match in pattern.finditer(text)]


def parse_text_rules(text: str, name: str) -> TextRules:
    """The rules in the text of a rules.json.

    Args:
        text: the file's text.
        name: the file's path, for errors.
    Raises:
        ConfigError: it is no JSON object of the two lists, or an expression is wrong.
    """
    try:
        row = json.loads(text)
        if not isinstance(row, dict) or set(row) != set(FIELDS):
            raise ValueError(f"its fields are {sorted(row) if isinstance(row, dict) else type(row).__name__}")
        lists = {field: tuple(re.compile(p, re.IGNORECASE) for _, p in row[field]) for field in FIELDS}
    except (ValueError, TypeError, re.error) as error:
        raise ConfigError(
            f"caption.prompts: {name}: {error}; expected an object with {' and '.join(map(repr, FIELDS))}, each a list "
            "of [what it is about, regular expression]; correct the file"
        ) from None
    return TextRules(**lists)
