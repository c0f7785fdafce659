"""The log of a project as a file: `scen log --json` writes it, and `scen edit` makes the project again from it."""

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
    """One event of a log.

    Attributes:
        where: Where the event was read.
        hash: Its hash.
        kind: Its kind.
        edit: The edit that it is about.
        detail: What it records.
        record: The record, of an edit.
        note: A remark on the conflicts of the edit.
    """

    where: SourceLine
    hash: str
    kind: str
    edit: int | None
    detail: dict[str, Any]
    record: EditRecord | None = None
    note: str = ""


def split_log(path: str) -> tuple[list[LogEvent], Iterator[tuple[int, object]]]:
    """Read a file that may be a log.

    Returns:
        (events, no items) of a log; of another file (no events, its items as `read_items` yields them).

    Raises:
        UsageError: A log has an entry that is not an event, or the file cannot be read.
    """
    items = read_items(path)
    first = next(items, None)
    if first is None or not _is_event(first[1]):
        return [], chain([first] if first is not None else [], items)
    return [_event(path, number, item) for number, item in chain([first], items)], iter(())


def _is_event(item: object) -> bool:
    return isinstance(item, dict) and set(item) >= FIELDS


def _event(path: str, number: int, item: Any) -> LogEvent:
    where = SourceLine(path, number)
    try:
        if not _is_event(item):
            raise ValueError("is not an event of a log")
        record = check_record(item["record"]) if item.get("record") is not None else None
        edit, note, detail = item["edit"], item.get("note") or "", item["detail"]
        if not isinstance(detail, dict) or not isinstance(edit, int | None) or not isinstance(note, str):
            raise ValueError("has a field of the wrong type")
        ids = [detail.get(name, []) for name in ("supersedes", "together")]
        if not all(isinstance(edits, list) and all(isinstance(other, int) for other in edits) for edits in ids):
            raise ValueError("names edits by something else than numbers")
        batch = detail.get("batch", [0, 1])
        if not isinstance(batch, list) or [type(number) for number in batch] != [int, int]:
            raise ValueError("has a `batch` that is not an index and a size")
        if item["kind"] in ("edit", "edit-failed") and (record is None or edit is None):
            raise ValueError("is of an edit, but has no record")
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
    return LogEvent(where, str(item["hash"]), str(item["kind"]), edit, detail, record, note)
