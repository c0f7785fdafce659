"""Writing records and other data: a file appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonlines

from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError


def write_records(path: Path, records: Iterable[EditRecord]) -> None:
    """Write records as JSON lines. Raises `UsageError` if there is such a file already."""
    if path.exists():
        raise UsageError(f"`{path}` is there already", hint="choose another name")
    write_lines(path, (record.as_json() for record in records))


def write_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines under a temporary name, then give the file its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with jsonlines.open(temporary, "w") as lines:
        lines.write_all(items)
    temporary.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object, the same way."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(path)


def digest(content: Any) -> str:
    """Hex sha256 of plain data, by its JSON: what else is read later is other data."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
