"""Writes records and other data. A file appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    with _complete(path) as draft, jsonlines.open(draft, "w") as lines:
        lines.write_all(items)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write one JSON value under a temporary name, then rename the file."""
    with _complete(path) as draft:
        draft.write_text(json.dumps(content, indent=indent), encoding="utf-8")


def digest(content: Any) -> str:
    """Hex sha256 of plain data, by its JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """Yield a temporary name, and rename that file to `path` when the block ends without an error; else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a write names no file
        raise
    finally:
        draft.unlink(missing_ok=True)
