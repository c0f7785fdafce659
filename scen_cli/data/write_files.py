"""Writes records and other data. A file appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
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
    with whole_file(path) as draft, jsonlines.open(draft, "w") as lines:
        lines.write_all(items)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write one JSON value under a temporary name, then rename the file."""
    write_text(path, json.dumps(content, indent=indent))


def write_text(path: Path, text: str) -> None:
    """Write a text under a temporary name, then rename the file."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def digest(content: Any) -> str:
    """Hex sha256 of plain data, by its JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name, and rename that file to `path` when the block ends without an error; else remove it.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(path)
    except OSError as error:
        if error.filename is None or Path(error.filename) in (draft, *path.parents):  # the error of a write names none
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
