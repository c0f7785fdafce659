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
            start = _first_letters(file)
            yield from (_array(file, start, path) if start.lstrip().startswith("[") else _lines(file, start))
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


def _first_letters(file: TextIO) -> str:
    """The start of the file up to its first letter, without a byte order mark."""
    start = file.read(1).removeprefix("\ufeff") or file.read(1)
    while start and not start.strip():
        letter = file.read(1)
        if not letter:
            break
        start += letter
    return start


def _lines(file: TextIO, start: str) -> Iterator[tuple[int, object]]:
    number = start.count("\n")
    rest = start.rpartition("\n")[2]
    while raw := rest + file.readline(LONGEST_RECORD):
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
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        return error


def _array(file: TextIO, start: str, path: str) -> Iterator[tuple[int, object]]:
    window = _Window(file, start, path)
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


class _Window:
    """The part of an array's text that is being read, and where in the file it stands."""

    def __init__(self, file: TextIO, start: str, path: str) -> None:
        self._file, self._text, self._path = file, start, path
        self._line, self._column = 1, 1

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
                value, end = json.JSONDecoder().raw_decode(self._text)
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
