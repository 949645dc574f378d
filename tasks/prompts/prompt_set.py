"""Prompt sets: the only reader of the files under `tasks/prompts/`.

A prompt set is a folder `tasks/prompts/<name>`; the parameter `caption.prompts` names it. Its files:

    describe.txt            request for a description of two images; {words} where a length is asked for
    write.txt               request for one instruction; needs {style} and {description}, may have {language} and
                            {demonstrations}
    retry.txt               optional: the request repeated after a reply was rejected; {prompt}, {reply}, {error}
    judge.txt               question to the judge; needs {instruction}
    check.txt               optional: whether one image shows {statement}, answered yes or no
    missing.txt             optional: whether two images differ in more than {differences}, answered yes or no
    kinds.json              optional: kinds of change by the text (tasks/prompts/kinds.py)
    rules.json              optional: what its texts must and must not contain (tasks/prompts/text_rules.py)
    caption.txt             request for the caption of one image
    describe.schema.json    optional: JSON schema of a description that is requested as JSON
    demonstrations.jsonl    needed where write.txt has {demonstrations}: one JSON object a line with `description` and
                            `texts` (style -> text)

One line break at the end of a prompt is not part of it. The bytes of the files that captioning uses (describe, write,
retry, schema, demonstrations, rules; check and missing where they are asked) give the hash that is stored beside every
text written with them.

The sample world's trainer (tasks/sample/tokens.py) reads the set `tiny` by itself: `sample` lies below this package.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config.section import NAME_PATTERN
from tasks.errors import ConfigError
from tasks.prompts import text_rules
from tasks.prompts.text_rules import TextRules, parse_text_rules

FOLDER = Path(__file__).parent
SCHEMA = "describe.schema.json"
DEMONSTRATIONS = "demonstrations.jsonl"
DEFAULT_RETRY = "{prompt}\n{error}"
REQUIRED_FIELDS = {
    "write": ("style", "description"),
    "judge": ("instruction",),
    "check": ("statement",),
    "missing": ("differences",),
}


@dataclass(frozen=True)
class PromptSet:
    """What captioning reads of a prompt set.

    Attributes:
        describe, write, retry: templates.
        sha256: hash of all files below, hex.
        schema: JSON schema of a description; None where descriptions are free text.
        check, missing: questions about one difference and about what is left out; None where they were not read.
        rules: what its texts must and must not contain.
        demonstrations: rows with `description` and `texts` (style -> text); empty where write.txt shows none.
    """

    describe: str
    write: str
    retry: str
    sha256: str
    schema: dict[str, Any] | None = None
    demonstrations: tuple[dict[str, Any], ...] = ()
    check: str | None = None
    missing: str | None = None
    rules: TextRules = TextRules()

    def description_request(self, words: int) -> str:
        """The request for a description of about `words` words."""
        return fill_template(self.describe, words=str(words))


def prompt_set_names() -> list[str]:
    """Names of the prompt sets, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/describe.txt"))


def read_prompt_file(set_name: str, file_name: str) -> str:
    """The text of one file of a prompt set, as it is.

    Raises:
        ConfigError: the file cannot be read, or the name leads out of tasks/prompts.
    """
    if not re.fullmatch(NAME_PATTERN, set_name):
        raise ConfigError(
            f"caption.prompts: {set_name!r} is no name of a prompt set; expected a folder of tasks/prompts, without a "
            f"path: name one of {prompt_set_names()}, or add a folder there"
        )
    path = FOLDER / set_name / file_name
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"caption.prompts: no such prompt: {path} cannot be read ({error}); expected a prompt set with a file "
            f"{file_name}; name one of {prompt_set_names()}, or add the file"
        ) from None


def read_prompt(set_name: str, part: str) -> str:
    """The prompt `<part>.txt` of a set, without the line break at its end.

    Args:
        set_name: a folder of tasks/prompts.
        part: 'describe', 'write', 'retry', 'judge' or 'caption'.
    Raises:
        ConfigError: the file cannot be read, or lacks a field of REQUIRED_FIELDS.
    """
    text = read_prompt_file(set_name, f"{part}.txt").rstrip("\n")
    if missing := [f"{{{field}}}" for field in REQUIRED_FIELDS.get(part, ()) if f"{{{field}}}" not in text]:
        raise ConfigError(
            f"caption.prompts: {FOLDER / set_name / part}.txt lacks the fields {missing}; add them to the prompt"
        )
    return text


def read_prompt_set(set_name: str, with_checks: bool = False) -> PromptSet:
    """The prompts, schema, demonstrations and rules of a set that captioning uses.

    Args:
        set_name: a folder of tasks/prompts.
        with_checks: also check.txt and missing.txt, where the set has them; they count in the hash then.
    Raises:
        ConfigError: a file is missing, is not JSON, or lacks a field.
    """
    folder = FOLDER / set_name
    hashed = {part: read_prompt(set_name, part) for part in ("describe", "write")}
    for part in ("retry", *(("check", "missing") if with_checks else ())):
        if (folder / f"{part}.txt").is_file():
            hashed[part] = read_prompt(set_name, part)
    describe, write, retry = hashed["describe"], hashed["write"], hashed.get("retry", DEFAULT_RETRY)
    schema: dict[str, Any] | None = None
    demonstrations: list[dict[str, Any]] = []
    rules = TextRules()
    if (folder / text_rules.FILE).is_file():
        hashed["rules"] = read_prompt_file(set_name, text_rules.FILE)
        rules = parse_text_rules(hashed["rules"], str(folder / text_rules.FILE))
    try:
        if (folder / SCHEMA).is_file():
            hashed["schema"] = read_prompt_file(set_name, SCHEMA)
            schema = json.loads(hashed["schema"])
        if "{demonstrations}" in write:
            hashed["demonstrations"] = read_prompt_file(set_name, DEMONSTRATIONS)
            demonstrations = [json.loads(line) for line in hashed["demonstrations"].splitlines() if line.strip()]
    except ValueError as error:
        raise ConfigError(
            f"caption.prompts: {folder}: {error}; expected {SCHEMA} to be a JSON schema and {DEMONSTRATIONS} to have "
            "one JSON object a line; correct the file"
        ) from None
    digest = hashlib.sha256("\x1f".join(f"{k}\x1e{v}" for k, v in sorted(hashed.items())).encode()).hexdigest()
    check, missing = hashed.get("check"), hashed.get("missing")
    return PromptSet(describe, write, retry, digest, schema, tuple(demonstrations), check, missing, rules)


def sample_demonstrations(
    demonstrations: Sequence[Mapping[str, Any]], style: str, count: int, seed: int, pair_id: str
) -> list[Mapping[str, Any]]:
    """`count` demonstrations that have a text of the style (all, where there are fewer).

    Drawn by seed, pair and style alone.
    """
    candidates = [d for d in demonstrations if style in d["texts"]]
    return random.Random(f"{seed}:{pair_id}:{style}").sample(candidates, min(count, len(candidates)))


def fill_template(template: str, **fields: str) -> str:
    """The template with each {name} of `fields` replaced; braces in the values stay as they are."""
    first, *parts = template.split("{")
    text = first
    for part in parts:
        name, brace, rest = part.partition("}")
        text += fields[name] + rest if brace and name in fields else "{" + part
    return text
