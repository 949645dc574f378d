"""Read a prompt set: the folder tasks/prompts/<name> with its prompts, demonstrations and schema."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError

PROMPTS = Path(__file__).parents[1] / "prompts"
DEMONSTRATIONS = "demonstrations.jsonl"  # descriptions of our own and the texts written to them, one a line
SCHEMA = "describe.schema.json"
DEFAULT_RETRY = "{prompt}\n{error}"


@dataclass(frozen=True)
class Prompts:
    """The texts of a prompt set and the hash that tells them from others."""

    describe: str
    write: str
    retry: str
    sha256: str
    schema: dict[str, Any] | None = None  # what a description must be, where it is asked for as JSON
    demonstrations: tuple[dict[str, Any], ...] = ()  # description, and texts by style

    def describing(self, words: int) -> str:
        """The request for a description of about `words` words."""
        return filled(self.describe, words=str(words))


def read_prompts(name: str) -> Prompts:
    """The prompt set tasks/prompts/<name>.

    Raises:
        ConfigError: a file is missing or not JSON, or write.txt lacks a field.
    """
    folder = PROMPTS / name
    texts: dict[str, str] = {}
    for part in ("describe", "write", "retry"):
        path = folder / f"{part}.txt"
        if path.is_file():
            texts[part] = path.read_text(encoding="utf-8").rstrip("\n")
        elif part != "retry":
            raise ConfigError(
                f"{path}: no such prompt; 'caption.prompts' names a folder of tasks/prompts: {sorted(p.name for p in PROMPTS.iterdir())}"
            )
    if missing := [f for f in ("{style}", "{description}") if f not in texts["write"]]:
        raise ConfigError(f"{folder / 'write.txt'}: expected the fields {missing}")
    hashed, schema, demonstrations = dict(texts), None, []
    try:
        if (folder / SCHEMA).is_file():
            hashed["schema"] = (folder / SCHEMA).read_text(encoding="utf-8")
            schema = json.loads(hashed["schema"])
        if "{demonstrations}" in texts["write"]:
            hashed["demonstrations"] = (folder / DEMONSTRATIONS).read_text(encoding="utf-8")
            demonstrations = [json.loads(line) for line in hashed["demonstrations"].splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder}: {error}; {DEMONSTRATIONS} has one JSON object a line, {SCHEMA} is a JSON schema"
        ) from None
    digest = hashlib.sha256("\x1f".join(f"{k}\x1e{v}" for k, v in sorted(hashed.items())).encode()).hexdigest()
    return Prompts(
        texts["describe"], texts["write"], texts.get("retry", DEFAULT_RETRY), digest, schema, tuple(demonstrations)
    )


def shown(
    demonstrations: Sequence[Mapping[str, Any]], style: str, count: int, seed: int, pair_id: str
) -> list[Mapping[str, Any]]:
    """The demonstrations for one request: `count` of those that have the style, drawn by seed, pair and style alone."""
    known = [d for d in demonstrations if style in d["texts"]]
    return random.Random(f"{seed}:{pair_id}:{style}").sample(known, min(count, len(known)))


def filled(template: str, **fields: str) -> str:
    """The template with {name} replaced; braces in the values stay as they are."""
    parts = template.split("{")
    out = parts[0]
    for part in parts[1:]:
        name, closed, rest = part.partition("}")
        out += fields[name] + rest if closed and name in fields else "{" + part
    return out
