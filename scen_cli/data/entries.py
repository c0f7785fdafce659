"""A file of edit records, in any form the field uses: every record, or what is wrong with it and where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scen_cli.data.dataset_forms import parse_record
from scen_cli.data.json_stream import complaint, read_items
from scen_cli.data.records import EXAMPLE, EditRecord, SourceLine
from scen_cli.errors import UsageError


@dataclass(frozen=True)
class Entry:
    """One record of a file, and the name of the form it had; or the reason there is none."""

    where: SourceLine
    record: EditRecord | None
    problem: str = ""
    form: str = ""


def read_entries(path: str, items: Iterable[tuple[int, object]] | None = None) -> list[Entry]:
    """Every record of a JSONL or JSON file (`-` is standard input), good and bad, in order; of its `items`, if these
    have been read.

    A record that repeats an earlier one (same prompt and target) is a problem; so is a second
    target for the same prompt, because only one of the two can be right, and a second record of
    the same id.

    Raises `UsageError` when the file cannot be read or holds no record at all.
    """
    entries = read_as_they_are(path, items)
    problems: dict[int, str] = {}
    for place, earlier, same in repeats(entries):
        line = earlier.where.line
        problems[place] = (
            f"repeats line {line}" if same else f"gives another target than line {line} for the same prompt"
        )
    named: dict[str, Entry] = {}
    for place, entry in enumerate(entries):
        if entry.record is not None and entry.record.id is not None and place not in problems:
            namesake = named.setdefault(entry.record.id, entry)
            if namesake is not entry:
                problems[place] = f"has the id of line {namesake.where.line}: {entry.record.id!r}"
    for place, problem in problems.items():
        entries[place] = Entry(entries[place].where, None, problem, entries[place].form)
    return entries


def repeats(entries: Sequence[Entry]) -> Iterator[tuple[int, Entry, bool]]:
    """(place, the first record of its prompt, whether the target is the same too) of each record whose prompt
    an earlier one has."""
    first: dict[str, Entry] = {}
    for place, entry in enumerate(entries):
        if entry.record is None:
            continue
        earlier = first.setdefault(entry.record.prompt, entry)
        if earlier is not entry and earlier.record is not None:
            yield place, earlier, earlier.record.target == entry.record.target


def read_as_they_are(path: str, items: Iterable[tuple[int, object]] | None = None) -> list[Entry]:
    """Every record of a file, repeats and contradictions among them. Raises as `read_entries` does."""
    source = path if path == "-" else str(Path(path).resolve())
    entries = [
        _entry(SourceLine(source, place), item) for place, item in (read_items(path) if items is None else items)
    ]
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
        form, record = parse_record(item)
    except ValueError as error:
        return Entry(where, None, str(error))
    return Entry(where, record, form=form)
