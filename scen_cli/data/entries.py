"""A file of edit records, in any form that the field uses: each record, or what is wrong with it and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scen_cli.data.dataset_forms import parse_records
from scen_cli.data.json_stream import describe_error, read_items
from scen_cli.data.records import EXAMPLE, EditRecord, SourceLine
from scen_cli.data.words import same_text
from scen_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of a file and its form, or the problem because of which there is no record.

    Attributes:
        where: Where it was read.
        record: The record.
        problem: Why there is none.
        form: Its form.
        empty: Optional fields that are empty, and were left out.
        other: Fields that the record has no place for, unchanged; of several records, the first has them.
    """

    where: SourceLine
    record: EditRecord | None
    problem: str = ""
    form: str = ""
    empty: tuple[str, ...] = ()
    other: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record and the other fields. Call only if there is a record."""
        assert self.record is not None
        return self.record.as_json() | ({"other": self.other} if self.other else {})


def read_entries(path: str, items: Iterable[tuple[int, object]] | None = None) -> list[Entry]:
    """Every record of a file, in order. A record that clashes with an earlier one is a problem.

    It clashes if it has the same prompt (a repeat, or a contradiction if the target differs) or the same id.

    Args:
        path: A JSONL, JSON, CSV, Parquet or Arrow file; `-` is standard input.
        items: What `read_items` yields for the file, if it has been read already.

    Raises:
        UsageError: The file cannot be read, or holds no records.
    """
    entries = parse_file(path, items)
    problems: dict[int, str] = {}
    for position, earlier, same_target in repeats(entries):
        what = "repeats line {}" if same_target else "gives another target than line {} for the same prompt"
        problems[position] = what.format(earlier.where.line)
    first_of_id: dict[str, Entry] = {}
    for position, entry in enumerate(entries):
        if entry.record is not None and entry.record.id is not None and position not in problems:
            earlier = first_of_id.setdefault(entry.record.id, entry)
            if earlier is not entry:
                problems[position] = f"has the id of line {earlier.where.line}: {entry.record.id!r}"
    for position, problem in problems.items():
        entries[position] = replace(entries[position], record=None, problem=problem)
    return entries


def parse_file(path: str, items: Iterable[tuple[int, object]] | None = None) -> list[Entry]:
    """Every record of a file, repeats and contradictions included. Arguments and errors as in `read_entries`."""
    source = path if path == "-" else _shown(Path(path).resolve())
    numbered = read_items(path) if items is None else items
    entries = [entry for number, item in numbered for entry in _entries(SourceLine(source, number), item)]
    if not entries:
        raise UsageError(f"`{path}` holds no records", hint=f"expected one JSON object per line: {EXAMPLE}")
    return entries


def _shown(path: Path) -> str:
    """A path as text that a ledger and a terminal can hold: a file name need not be UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def repeats(entries: Sequence[Entry]) -> Iterator[tuple[int, Entry, bool]]:
    """(position, first entry of its prompt, whether the target is the same) of each entry that repeats a prompt."""
    first: dict[str, Entry] = {}
    for position, entry in enumerate(entries):
        earlier = first.setdefault(entry.record.prompt, entry) if entry.record else entry
        if earlier is not entry and earlier.record and entry.record:
            yield position, earlier, same_text(earlier.record.target, entry.record.target)


def good_records(path: str) -> list[EditRecord]:
    """The first record of each prompt: the published files repeat some. Raises `UsageError` for an unreadable one."""
    records: dict[str, EditRecord] = {}
    for entry in parse_file(path):
        if entry.record is None:
            raise UsageError(f"{entry.where}: {entry.problem}")
        records.setdefault(entry.record.prompt, entry.record)
    return list(records.values())


def bad_lines(entries: Iterable[Entry], limit: int = 10) -> str:
    """One line for each entry that has no record, for a message."""
    bad = [f"{entry.where}: {entry.problem}" for entry in entries if entry.record is None]
    more = [f"and {len(bad) - limit} more"] if len(bad) > limit else []
    return "\n".join(bad[:limit] + more)


def empty_fields(entries: Iterable[Entry], limit: int = 10) -> list[str]:
    """One line for each of the first entries that have empty fields."""
    found = [entry for entry in entries if entry.empty]
    lines = [f"{entry.where}: {', '.join(f'`{name}`' for name in entry.empty)} is empty: left out" for entry in found]
    return lines[:limit] + ([f"and {len(lines) - limit} more"] if len(lines) > limit else [])


def _entries(where: SourceLine, item: object) -> list[Entry]:
    if isinstance(item, Exception):
        return [Entry(where, None, describe_error(item))]
    try:
        parsed = parse_records(item)
    except ValueError as error:
        return [Entry(where, None, str(error))]
    return [
        Entry(where, record, "", parsed.form, tuple(parsed.empty), {} if number else parsed.other)
        for number, record in enumerate(parsed.records)
    ]
