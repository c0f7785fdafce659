"""Writes records and other data. A file appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonlines

from scen_cli.data.entries import Entry
from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError


def write_records(path: Path, records: Iterable[EditRecord | Entry]) -> None:
    """Write records as JSON lines, entries with their other fields. Raises `UsageError` if the file exists."""
    if path.exists():
        raise UsageError(f"`{path}` exists already", hint="choose another name")
    write_lines(path, (record.as_json() for record in records))


def write_lines(path: Path, items: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines under a temporary name, then rename the file."""
    draft = _draft(path)
    with jsonlines.open(draft, "w") as lines:
        lines.write_all(items)
    draft.replace(path)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write one JSON value under a temporary name, then rename the file."""
    draft = _draft(path)
    draft.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    draft.replace(path)


def digest(content: Any) -> str:
    """Hex sha256 of plain data, by its JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _draft(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")
