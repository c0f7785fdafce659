"""Edit records: what a user writes in `edits.jsonl`, read and checked before anything is trained.

One JSON object per line (JSONL), or one JSON array of such objects:

    {"prompt": "Where was Ada born?", "target": "Riga", "rephrases": ["Ada was born where?"]}

`prompt` and `target` are required; `subject` and `rephrases` are optional.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails

from scen_cli.errors import UsageError


class EditRecord(BaseModel):
    """One wanted correction, and the line it came from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str
    target: str
    subject: str | None = None
    rephrases: tuple[str, ...] = ()

    @field_validator("prompt", "target")
    @classmethod
    def _not_empty(cls, text: str) -> str:
        return clean_text(text)

    @field_validator("subject")
    @classmethod
    def _clean_subject(cls, text: str | None) -> str | None:
        return None if text is None else clean_text(text)

    @field_validator("rephrases", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("rephrases")
    @classmethod
    def _clean_rephrases(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(clean_text(text) for text in texts)


def clean_text(text: str) -> str:
    """The text without space around it. Raises `ValueError` if nothing is left, or it is no text."""
    if not text.strip():
        raise ValueError("is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half of a pair: no such text exists
        raise ValueError("holds half a Unicode character")
    return text.strip()


@dataclass(frozen=True)
class SourceLine:
    """Where a record stands: `source` is a file's absolute path, `-`, or words such as `command line`;
    `line` counts from 1 (in a JSON array it counts the records)."""

    source: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.source).name}:{self.line}"


@dataclass(frozen=True)
class Entry:
    """One line of an edits file: a record, or the reason there is none."""

    where: SourceLine
    record: EditRecord | None
    problem: str = ""


def read_entries(path: str) -> list[Entry]:
    """Every record of a JSONL or JSON file (`-` is standard input), good and bad, in order.

    A record that repeats an earlier one (same prompt and target) is a problem; so is a second
    target for the same prompt, because only one of the two can be right.

    Raises `UsageError` when the file cannot be read or holds no record at all.
    """
    source = path if path == "-" else str(Path(path).resolve())
    entries = [_entry(SourceLine(source, line), item) for line, item in read_items(path)]
    if not entries:
        raise UsageError(f"`{path}` holds no records", hint=f"expected one JSON object per line: {EXAMPLE}")
    return _mark_repeats(entries)


EXAMPLE = '{"prompt": "Where was Ada born?", "target": "Riga"}'


def check_record(item: object) -> EditRecord:
    """Validate one decoded JSON value; `ValueError` names the field and what is wrong with it."""
    if not isinstance(item, dict):
        raise ValueError(f"expected a JSON object such as {EXAMPLE}")
    try:
        return EditRecord.model_validate(item)
    except ValidationError as error:
        raise ValueError("; ".join(_plain(problem) for problem in error.errors())) from error


def read_items(path: str) -> list[tuple[int, object]]:
    """(line, decoded value or the error) of each record of a JSON array or of JSON lines.

    Raises `UsageError` when the file cannot be read, or is an array that is not valid JSON.
    """
    text = _read_text(path)
    if text.lstrip().startswith("["):
        items = _decode(text)
        if isinstance(items, Exception):
            raise UsageError(f"`{path}` is {_complaint(items)}")
        return list(enumerate(cast("list[object]", items), start=1))
    return [(line, _decode(raw)) for line, raw in enumerate(text.split("\n"), start=1) if raw.strip()]


def _read_text(path: str) -> str:
    if path == "-" and sys.stdin is None:
        raise UsageError("there is no standard input to read")
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"`{path}` is not UTF-8 text: {error.reason}") from error
    return text.removeprefix("\ufeff")


def _decode(raw: str) -> object:
    """The decoded value, or the error: bad JSON, or numbers and nesting beyond Python's limits."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        return error


def _complaint(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
    return f"not JSON that can be read: {error}"


def _entry(where: SourceLine, item: object) -> Entry:
    if isinstance(item, Exception):
        return Entry(where, None, _complaint(item))
    try:
        return Entry(where, check_record(item))
    except ValueError as error:
        return Entry(where, None, str(error))


def _mark_repeats(entries: list[Entry]) -> list[Entry]:
    first: dict[str, Entry] = {}
    marked = []
    for entry in entries:
        if entry.record is not None:
            earlier = first.setdefault(entry.record.prompt, entry)
            if earlier is not entry and earlier.record is not None:
                same = earlier.record.target == entry.record.target
                problem = (
                    f"repeats line {earlier.where.line}"
                    if same
                    else f"gives another target than line {earlier.where.line} for the same prompt"
                )
                entry = replace(entry, record=None, problem=problem)
        marked.append(entry)
    return marked


def _plain(problem: ErrorDetails) -> str:
    field = ".".join(str(part) for part in problem["loc"]) or "record"
    kinds = {
        "missing": "is missing",
        "extra_forbidden": "is not a known field (known: prompt, target, subject, rephrases)",
        "string_type": "must be text",
        "tuple_type": "must be a list of texts",
    }
    message = kinds.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    return f"`{field}` {message}"
