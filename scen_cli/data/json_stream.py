"""Reads JSON lines and JSON arrays one record at a time, so that a file of any size needs little memory; and tables.

The array reader is our own. `ijson` 3.6 (yajl2_c) was tried: its errors give no line and column, and the process was
killed when it read 100,000 nested brackets.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from typing import TextIO, cast

from scen_cli.data.table_files import TABLES, read_table
from scen_cli.errors import UsageError

MAX_RECORD = 1 << 20  # characters: an edit record never needs more
_CHUNK = 1 << 16


def read_items(path: str) -> Iterator[tuple[int, object]]:
    """Read records of JSON lines, of an array, of objects over several lines, or of a table that `datasets` exports.

    Args:
        path: A file, or `-` for standard input.

    Yields:
        (number, value) of each record. The number is its line, or else its position; both count from 1. For a line
        that is not JSON the value is the error, and reading continues. Nothing else can be read past an error.

    Raises:
        UsageError: The file cannot be read, or is an array that is not valid JSON.
    """
    try:
        if path.lower().endswith(TABLES):
            yield from read_table(path)
            return
        with _open(path) as file:
            blank_lines, start = _skip_blank(file)
            if start.lstrip().startswith("["):
                yield from _ValueReader(file, start, path, blank_lines + 1).items()
            elif start.startswith("{") and start.rstrip().endswith(("{", "[")):  # an object over several lines
                yield from _ValueReader(file, start, path, blank_lines + 1).objects()
            else:
                yield from _lines(file, start, blank_lines)
    except OSError as error:
        raise UsageError(f"cannot read `{path}`: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"`{path}` is not UTF-8 text: {error.reason}") from error


def describe_error(error: Exception) -> str:
    """What is wrong with a record that could not be decoded."""
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
    return f"not JSON that can be read: {error}"


@contextmanager
def _open(path: str) -> Iterator[TextIO]:
    """A file, or standard input, as UTF-8 whatever the locale is."""
    # Only "\n" ends a line: a JSON string may contain other separators.
    if path != "-":
        with Path(path).open(encoding="utf-8", newline="\n") as file:
            yield file
        return
    if sys.stdin is None:
        raise UsageError("there is no standard input to read")
    text = TextIOWrapper(sys.stdin.buffer, encoding="utf-8", newline="\n")
    try:
        yield text
    finally:
        with suppress(ValueError):  # it is closed already
            text.detach()  # closing `text` would close standard input


def _skip_blank(file: TextIO) -> tuple[int, str]:
    """(blank lines, first other line or a piece of it), without a byte order mark."""
    start, blank_lines = file.readline(_CHUNK).removeprefix("\ufeff"), 0
    while not start.strip() and (more := file.readline(_CHUNK)):
        blank_lines += start.count("\n")
        start = more
    return blank_lines, start


def _lines(file: TextIO, start: str, number: int) -> Iterator[tuple[int, object]]:
    while line := start if start.endswith("\n") else start + file.readline(MAX_RECORD):
        number, start = number + 1, ""
        if len(line) > MAX_RECORD - 1 and not line.endswith("\n"):
            while (more := file.readline(MAX_RECORD)) and not more.endswith("\n"):
                pass
            yield number, ValueError(f"longer than {MAX_RECORD} characters")
        elif line.strip():
            try:
                yield number, _DECODER.decode(line)
            except (ValueError, RecursionError) as error:  # bad JSON, or numbers and nesting beyond Python's limits
                yield number, error


def _unique_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object. Raises `ValueError` for a field that it has twice: only one of the two can be meant."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(name, _count), *_others] = Counter(name for name, _value in pairs).most_common(1)
        raise ValueError(f"an object has the field {name!r} twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_fields)


class _ValueReader:
    """Reads an array, or objects one after another, through a buffer, and knows where in the file the buffer starts."""

    def __init__(self, file: TextIO, start: str, path: str, line: int) -> None:
        self._file, self._buffer, self._path = file, start, path
        self._line, self._column = line, 1

    def items(self) -> Iterator[tuple[int, object]]:
        self._take("[")
        if self._next_character() != "]":
            for number in count(1):  # pragma: no branch
                yield number, self._value()
                if self._next_character() == "]":
                    break
                self._take(",")
        self._take("]")
        if self._next_character():
            raise self._error("Extra data")

    def objects(self) -> Iterator[tuple[int, object]]:
        for number in count(1):
            if not self._next_character():
                break
            yield number, self._value()

    def _next_character(self) -> str:
        """Skip white space and return the next character; empty at the end."""
        while True:
            self._advance(len(self._buffer) - len(self._buffer.lstrip(" \t\r\n")))
            if self._buffer or not self._read_more():
                return self._buffer[:1]

    def _take(self, character: str) -> None:
        if self._next_character() != character:
            raise self._error(f"Expecting {character!r}")
        self._advance(1)

    def _value(self) -> object:
        """The next JSON value. Reads on until it is complete."""
        self._next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer)
            except json.JSONDecodeError as error:
                if len(self._buffer) <= MAX_RECORD and self._read_more():
                    continue
                raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise UsageError(f"`{self._path}` is {describe_error(error)}") from error
            if end < len(self._buffer) or not self._read_more():  # else a number could continue
                self._advance(end)
                return cast(object, value)

    def _error(self, message: str, position: int = 0) -> UsageError:
        if len(self._buffer) > MAX_RECORD:
            return UsageError(f"`{self._path}`: the record on line {self._line} is over {MAX_RECORD} characters")
        line, column = self._place(position)
        return UsageError(f"`{self._path}` is not valid JSON: line {line}, column {column}: {message}")

    def _read_more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        self._buffer += chunk
        return bool(chunk)

    def _advance(self, length: int) -> None:
        self._line, self._column = self._place(length)
        self._buffer = self._buffer[length:]

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column of a position in the buffer."""
        lines = self._buffer.count("\n", 0, position)
        column = position - self._buffer.rfind("\n", 0, position) if lines else self._column + position
        return self._line + lines, column
