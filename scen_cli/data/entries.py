"""A file of edit records, in any form the field uses: every record, or what is wrong with it and where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from scen_cli.data.forms import understand
from scen_cli.data.reading import complaint, read_items
from scen_cli.data.records import EXAMPLE, EditRecord, SourceLine
from scen_cli.errors import UsageError


@dataclass(frozen=True)
class Entry:
    """One record of a file, and the name of the form it had; or the reason there is none."""

    where: SourceLine
    record: EditRecord | None
    problem: str = ""
    form: str = ""


def read_entries(path: str) -> list[Entry]:
    """Every record of a JSONL or JSON file (`-` is standard input), good and bad, in order.

    A record that repeats an earlier one (same prompt and target) is a problem; so is a second
    target for the same prompt, because only one of the two can be right, and a second record of
    the same id.

    Raises `UsageError` when the file cannot be read or holds no record at all.
    """
    entries = read_as_they_are(path)
    first: dict[str, Entry] = {}
    named: dict[str, Entry] = {}
    for position, entry in enumerate(entries):
        problem = _repeated(entry, first, named)
        if problem:
            entries[position] = Entry(entry.where, None, problem, entry.form)
    return entries


def read_as_they_are(path: str) -> list[Entry]:
    """Every record of a file, repeats and contradictions among them. Raises as `read_entries` does."""
    source = path if path == "-" else str(Path(path).resolve())
    entries = [_entry(SourceLine(source, place), item) for place, item in read_items(path)]
    if not entries:
        raise UsageError(f"`{path}` holds no records", hint=f"expected one JSON object per line: {EXAMPLE}")
    return entries


def good_records(path: str) -> list[EditRecord]:
    """The records of a file of which every one can be read; the first of each prompt, for the
    published files repeat some. Raises `UsageError` naming the first record that cannot be read."""
    records: dict[str, EditRecord] = {}
    for entry in read_as_they_are(path):
        if entry.record is None:
            raise UsageError(f"{entry.where}: {entry.problem}")
        records.setdefault(entry.record.prompt, entry.record)
    return list(records.values())


def bad_lines(entries: Iterable[Entry], at_most: int = 10) -> str:
    """One line for each entry that has no record, for a message."""
    bad = [f"{entry.where}: {entry.problem}" for entry in entries if entry.record is None]
    more = [f"and {len(bad) - at_most} more"] if len(bad) > at_most else []
    return "\n".join(bad[:at_most] + more)


def _entry(where: SourceLine, item: object) -> Entry:
    if isinstance(item, Exception):
        return Entry(where, None, complaint(item))
    try:
        form, record = understand(item)
    except ValueError as error:
        return Entry(where, None, str(error))
    return Entry(where, record, form=form)


def _repeated(entry: Entry, first: dict[str, Entry], named: dict[str, Entry]) -> str:
    """What a record repeats of an earlier one, if anything. `first` and `named` gather prompts and ids."""
    if entry.record is None:
        return ""
    earlier = first.setdefault(entry.record.prompt, entry)
    if earlier is not entry and earlier.record is not None:
        if earlier.record.target == entry.record.target:
            return f"repeats line {earlier.where.line}"
        return f"gives another target than line {earlier.where.line} for the same prompt"
    if entry.record.id is not None:
        namesake = named.setdefault(entry.record.id, entry)
        if namesake is not entry:
            return f"has the id of line {namesake.where.line}: {entry.record.id!r}"
    return ""
