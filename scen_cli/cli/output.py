"""The one way commands talk: results on stdout, everything else on stderr.

`--json` prints the result as one JSON object; `--quiet` leaves out progress and notes. Text that
came from a user or a model is never read as Rich markup, and what would steer a terminal is shown, not sent.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]

PIPE_WIDTH = 10_000  # columns, where there is no terminal to wrap for
Tell = Callable[[str, str], None]
# What moves a terminal's cursor, writes its title or turns its line round; a new line and a tab are text.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text with every character that would steer a terminal written out: `\\x1b`."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _harmless_json(text: str) -> str:
    """The same JSON, with such characters escaped (`json` itself leaves those beyond ASCII as they are)."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Output:
    """What one run of a command prints."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._stderr = Console(stderr=True, highlight=False, soft_wrap=True)

    def result(self, data: dict[str, Any] | list[Any], *shown: RenderableType) -> None:
        """The result: `data` under `--json`, else `shown`, one below the other."""
        if self.as_json:
            typer.echo(_harmless_json(json.dumps(data, indent=1, ensure_ascii=False)))
            return
        if sys.stdout.isatty():
            console = Console(highlight=False)
            for item in shown:
                console.print(Text(harmless(item)) if isinstance(item, str) else item)
            return
        text = StringIO()  # for a pipe or a file: a record keeps to its line, and nothing trails it
        console = Console(file=text, highlight=False, width=PIPE_WIDTH)
        for item in shown:
            console.print(Text(harmless(item)) if isinstance(item, str) else item)
        for line in text.getvalue().splitlines():
            typer.echo(line.rstrip())

    def note(self, text: str) -> None:
        """What is going on; not part of the result."""
        if not self.quiet:
            self._stderr.print(Text(harmless(text)))

    def warn(self, text: str) -> None:
        """Shown even with `--quiet`."""
        self._stderr.print(Text(harmless(text), style="yellow"))

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int], None]]:
        """Yields `tell(count)`, for work whose end is not known: a counter on a terminal, else nothing."""
        if self.quiet or not self._stderr.is_terminal:
            yield lambda _count: None
            return
        with self._stderr.status(f"0 {what}") as status:
            yield lambda count: status.update(f"{count} {what}")

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Tell]:
        """Yields `tell(line, pace)`, to be called after each item: on a terminal it moves a bar with
        count, pace and time left; elsewhere it prints the line, unless that is empty."""
        if self.quiet or not self._stderr.is_terminal:
            yield lambda line, _pace: self.note(line) if line else None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._stderr, transient=True) as bar:
            task = bar.add_task(what, total=total, pace="")

            yield lambda _line, pace: bar.update(task, advance=1, pace=pace)


def counted(count: int, what: str) -> str:
    """A number of things, in words: `1 problem`, `2 problems`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> Table:
    """A plain table of texts; a column whose name ends in `#` is aligned to the right, and there is
    no header line when no column has a name."""
    grid = Table(show_header=any(columns), box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column.rstrip("#"), justify="right" if column.endswith("#") else "left")
    for row in rows:
        grid.add_row(*(Text("" if cell is None else harmless(str(cell))) for cell in row))
    return grid


def print_error(message: str, hint: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), harmless(message)))
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), harmless(hint)))
