"""The lines of a list that somebody sent: UTF-8 or UTF-16, with a byte-order mark or without."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError


def utf16_encoding(content: bytes) -> str | None:
    """The form of UTF-16 that a text has, by its byte-order mark or its zero bytes; None for none."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in content[:4096]:
        return "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    return None


def decode_text(content: bytes, path: Path | str, parameter: str) -> list[str]:
    """The lines of a list in UTF-8 or UTF-16, with a byte-order mark or without.

    Raises:
        ConfigError: other bytes; it names the line.
    """
    encoding = utf16_encoding(content) or "utf-8-sig"
    try:
        return content.decode(encoding).splitlines()
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{parameter}: {path}, line {number}: bytes that are not {encoding.removesuffix('-sig')}; expected a text "
            "in UTF-8 or UTF-16; save the list as UTF-8"
        ) from None


def decode_object(text: str, where: str, parameter: str) -> dict[str, Any] | None:
    """A line's JSON object; None for a text that is none.

    Raises:
        ConfigError: half of a pair of surrogates, which JSON can write and no name holds.
    """
    try:
        row = json.loads(text)
    except ValueError:
        return None
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{parameter}: {where}: half of a pair of surrogates (\\ud800 to \\udfff alone), which no name or address "
            "holds; write the character itself, or both halves"
        ) from None
    return row if isinstance(row, dict) else None
