"""The log of a project as a file: what `scen log --json` writes, and `scen edit` makes a project of again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from scen_cli.data.json_stream import read_items
from scen_cli.data.records import EditRecord, SourceLine, check_record
from scen_cli.errors import UsageError

FIELDS = {"id", "created", "kind", "edit", "detail", "hash"}


@dataclass(frozen=True)
class LogEvent:
    """One entry of a log: its place, hash and kind, the edit it is about, what it tells, and of an edit the record and
    the note of what it was kept beside."""

    where: SourceLine
    hash: str
    kind: str
    edit: int | None
    detail: dict[str, Any]
    record: EditRecord | None = None
    note: str = ""


def is_entry(item: object) -> bool:
    """Whether a decoded record is an entry of a log."""
    return isinstance(item, dict) and set(item) >= FIELDS


def split_log(path: str) -> tuple[list[LogEvent], Iterator[tuple[int, object]]]:
    """The entries of a file if it is a log, else none; and, if it is none, its records as `read_items` gives them.

    Raises `UsageError` for a log with an entry that is none, and as `read_items` does.
    """
    items = read_items(path)
    first = next(items, None)
    if first is None or not is_entry(first[1]):
        return [], chain([first] if first is not None else [], items)
    return [_event(path, place, item) for place, item in chain([first], items)], iter(())


def _event(path: str, place: int, item: Any) -> LogEvent:
    where = SourceLine(path, place)
    try:
        if not is_entry(item):
            raise ValueError("is no entry of a log")
        record = check_record(item["record"]) if item.get("record") is not None else None
        edit, note, detail = item["edit"], item.get("note") or "", item["detail"]
        if not isinstance(detail, dict) or not isinstance(edit, int | None) or not isinstance(note, str):
            raise ValueError("holds something else than it must")
        if any(not _are_ids(detail[name]) for name in ("supersedes", "together") if name in detail):
            raise ValueError("names edits otherwise than by numbers")
        if item["kind"] in ("edit", "edit-failed") and (record is None or edit is None):
            raise ValueError("is of an edit, but has no record of it")
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
    return LogEvent(where, str(item["hash"]), str(item["kind"]), edit, detail, record, note)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, int) for one in value)
