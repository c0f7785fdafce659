"""Which fields of a published record scen's own form has no place for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any


class Tracked(dict[str, Any]):
    """An object that knows which of its fields were read."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__({name: _tracked(value) for name, value in fields.items()})
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


class TrackedList(list[Any]):
    """A list that knows which of its items were read."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(map(_tracked, items))
        self.read: set[int] = set()

    def __iter__(self) -> Iterator[Any]:
        self.read.update(range(len(self)))
        return super().__iter__()

    def __getitem__(self, place: Any) -> Any:
        self.read.add(place)
        return super().__getitem__(place)


def _tracked(value: Any) -> Any:
    if isinstance(value, dict):
        return Tracked(value)
    return TrackedList(value) if isinstance(value, list) else value


def unread_fields(item: dict[str, Any], tracked: Tracked, written: Any) -> dict[str, Any]:
    """The fields of a record, unchanged, of which something was not read or is not in what was written of it.

    Args:
        item: The record.
        tracked: The same, as it was read.
        written: The JSON that was made of it.
    """
    texts = set(leaves(written))
    return {name: item[name] for name, value in tracked.items() if name not in tracked.read or _is_unread(value, texts)}


def leaves(value: Any) -> Iterator[Any]:
    """The texts, numbers and truth values in a JSON value."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    elif value is not None and value != "":
        yield value


def _is_unread(value: Any, texts: Collection[str]) -> bool:
    if isinstance(value, Tracked):
        return any(name not in value.read or _is_unread(item, texts) for name, item in value.items())
    if isinstance(value, TrackedList):
        seen = set(value.read)  # which reading it here changes
        return any(_is_unread(item, texts if place in seen else ()) for place, item in enumerate(value))
    return value not in (None, "") and not (isinstance(value, str) and value in texts)
