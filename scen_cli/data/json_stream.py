"""JSON lines and JSON arrays, read piece by piece: a file of any size, one record in memory at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO, cast

from scen_cli.errors import UsageError

LONGEST_RECORD = 1 << 20  # characters: no question and answer takes more
_PIECE = 1 << 16
_SPACE = " \t\r\n"


def read_items(path: str) -> Iterator[tuple[int, object]]:
    """(place, decoded value) of each record of a JSON array or of JSON lines; `-` is standard input.

    The place is a line number, or in an array the record's; both count from 1. A line that is not
    JSON comes as the error itself, and reading goes on; an array cannot be read past such a place.

    Raises `UsageError` when the file cannot be read, or is an array that is not valid JSON.
    """
    try:
        with _open(path) as file:
            blank, start = _first_letters(file)
            array = start.lstrip().startswith("[")
            yield from (_array(_Window(file, start, path, blank + 1)) if array else _lines(file, start, blank))
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"`{path}` is not UTF-8 text: {error.reason}") from error


def complaint(error: Exception) -> str:
    """What is wrong with a record that could not be decoded."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
    return f"not JSON that can be read: {error}"


def _open(path: str) -> AbstractContextManager[TextIO]:
    if path == "-":
        if sys.stdin is None:
            raise UsageError("there is no standard input to read")
        return _standard_input()
    # Only "\n" ends a line: other separators may stand within a JSON string.
    return cast("AbstractContextManager[TextIO]", Path(path).open(encoding="utf-8", newline="\n"))


@contextmanager
def _standard_input() -> Iterator[TextIO]:
    """Standard input as UTF-8, whatever the locale says."""
    text = TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="\n")
    try:
        yield text
    finally:
        with suppress(ValueError):  # somebody else has closed it
            text.detach()  # closing it would close standard input


def _first_letters(file: TextIO) -> tuple[int, str]:
    """The first line that is not blank, or a piece of it, without a byte order mark; and how many stand before it."""
    start, blank = file.readline(_PIECE).removeprefix("\ufeff"), 0
    while not start.strip() and (more := file.readline(_PIECE)):
        blank += start.count("\n")
        start = more
    return blank, start


def _lines(file: TextIO, rest: str, number: int) -> Iterator[tuple[int, object]]:
    while raw := rest if rest.endswith("\n") else rest + file.readline(LONGEST_RECORD):
        number, rest = number + 1, ""
        if len(raw) > LONGEST_RECORD - 1 and not raw.endswith("\n"):
            while (more := file.readline(LONGEST_RECORD)) and not more.endswith("\n"):
                pass
            yield number, ValueError(f"longer than {LONGEST_RECORD} characters")
        elif raw.strip():
            yield number, _decode(raw)


def _decode(raw: str) -> object:
    """The decoded value, or the error: bad JSON, or numbers and nesting beyond Python's limits."""
    try:
        return json.loads(raw, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object. `ValueError` for a field that it has twice: only one of the two can be meant."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _value in pairs]
        raise ValueError(f"an object has the field {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields


def _array(window: _Window) -> Iterator[tuple[int, object]]:
    window.take("[")
    if window.peek() == "]":
        window.take("]")
    else:
        for number in range(1, sys.maxsize):  # pragma: no branch
            yield number, window.value()
            if window.peek() == "]":
                window.take("]")
                break
            window.take(",")
    if window.peek():
        raise window.error("Extra data")


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


class _Window:
    """The part of an array's text that is being read, and where in the file it stands."""

    def __init__(self, file: TextIO, start: str, path: str, line: int) -> None:
        self._file, self._text, self._path = file, start, path
        self._line, self._column = line, 1

    def peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            space = len(self._text) - len(self._text.lstrip(_SPACE))
            self._pass(space)
            if self._text or not self._fill():
                return self._text[:1]

    def take(self, wanted: str) -> None:
        if self.peek() != wanted:
            raise self.error(f"Expecting {wanted!r}")
        self._pass(1)

    def value(self) -> object:
        """The next JSON value, reading on until it is whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text)
            except json.JSONDecodeError as error:
                if len(self._text) <= LONGEST_RECORD and self._fill():
                    continue
                line = self._line + error.lineno - 1
                column = error.colno + (self._column - 1 if error.lineno == 1 else 0)
                raise self.error(error.msg, line, column) from error
            except (ValueError, RecursionError) as error:
                raise UsageError(f"`{self._path}` is {complaint(error)}") from error
            if end < len(self._text) or not self._fill():  # else a number might go on
                self._pass(end)
                return cast(object, value)

    def error(self, what: str, line: int = 0, column: int = 0) -> UsageError:
        if len(self._text) > LONGEST_RECORD:
            return UsageError(f"`{self._path}`: the record on line {self._line} is over {LONGEST_RECORD} characters")
        where = f"line {line or self._line}, column {column or self._column}"
        return UsageError(f"`{self._path}` is not valid JSON: {where}: {what}")

    def _fill(self) -> bool:
        piece = self._file.read(_PIECE)
        self._text += piece
        return bool(piece)

    def _pass(self, letters: int) -> None:
        passed, self._text = self._text[:letters], self._text[letters:]
        lines = passed.count("\n")
        self._line += lines
        self._column = len(passed) - passed.rfind("\n") if lines else self._column + letters
