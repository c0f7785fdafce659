"""The output of every command: the result on stdout, everything else on stderr.

`--json` prints the result as one JSON object; `--quiet` leaves out progress and notes. Text from a user or a model is
never interpreted as Rich markup, and terminal control characters in it are printed as escapes.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from threading import Event, Thread
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]

PIPE_WIDTH = 10_000  # columns, where no terminal wraps the lines
Progress = Callable[[str, str], None]
# Characters that move the cursor, set the title or reverse the line of a terminal; a new line and a tab are text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text with terminal control characters escaped: `\\x1b`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _harmless_json(text: str) -> str:
    """JSON with terminal control characters escaped (`json` leaves those beyond ASCII as they are)."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Output:
    """Prints for one run of a command. `report_seconds` pass between two progress lines where there is no terminal.

    Attributes:
        has_result: Whether a result has been printed: then an error is not printed as JSON too.
    """

    has_result = False

    def __init__(self, as_json: bool = False, quiet: bool = False, report_seconds: float = 8.0) -> None:
        self.as_json, self.quiet, self._report_seconds = as_json, quiet, report_seconds
        self._noted = time.monotonic()  # when the last note was printed
        self._stderr = Console(stderr=True, highlight=False, soft_wrap=True)

    def result(self, data: dict[str, Any] | list[Any], *shown: RenderableType) -> None:
        """Print the result: `data` with `--json`, otherwise `shown`, one below the other."""
        Output.has_result = True
        if self.as_json:
            typer.echo(_harmless_json(json.dumps(data, indent=1, ensure_ascii=False)))
            return
        if sys.stdout.isatty():
            console = Console(highlight=False)
            for item in shown:
                console.print(Text(harmless(item)) if isinstance(item, str) else item)
            return
        text = StringIO()  # for a pipe or a file: one line for a record, without trailing spaces
        console = Console(file=text, highlight=False, width=PIPE_WIDTH)
        for item in shown:
            console.print(Text(harmless(item)) if isinstance(item, str) else item)
        for line in text.getvalue().splitlines():
            typer.echo(line.rstrip())

    def note(self, text: str) -> None:
        """Print what is being done; not part of the result."""
        if not self.quiet:
            self._noted = time.monotonic()
            self._stderr.print(Text(harmless(text)))

    def table(self, shown: RenderableType) -> None:
        """Print a table of what is being done; not part of the result."""
        if not self.quiet:
            self._stderr.print(shown)

    def warn(self, text: str) -> None:
        """Print a warning, even with `--quiet`."""
        self._stderr.print(Text(harmless(text), style="yellow"))

    @contextmanager
    def working(self, what: str) -> Iterator[Callable[[str], None]]:
        """Yields `update(what)`. What is being done is shown until the block ends: on a terminal by a spinner, else in
        a line from time to time, with the seconds so far. No work is silent, however long one step takes."""
        if self.quiet:
            yield lambda _what: None
            return
        if self._stderr.is_terminal:
            with self._stderr.status(Text(harmless(what))) as status:
                yield lambda now: status.update(Text(harmless(now)))
            return
        doing, ended, started = [what], Event(), time.monotonic()

        def report() -> None:
            while not ended.wait(max(self._noted + self._report_seconds - time.monotonic(), 0)):
                if time.monotonic() >= self._noted + self._report_seconds:
                    self.note(f"{doing[0]} ({time.monotonic() - started:.0f} s)")

        thread = Thread(target=report, daemon=True)
        thread.start()
        try:
            yield lambda now: doing.__setitem__(0, now)
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Yields `progress(done, total)`, for work whose total may grow."""
        with self.working(what) as update:
            yield lambda done, total: update(f"{done} of {total} {what}")

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Progress]:
        """Yields `progress(line, pace)`, to be called after each item: on a terminal it moves a bar with count, pace
        and time left; otherwise it prints the line, and the count from time to time."""
        if self.quiet or not self._stderr.is_terminal:
            done = 0

            with self.working(what) as update:

                def print_line(line: str, pace: str) -> None:
                    nonlocal done
                    done += 1
                    update(f"{what}: {done} of {total}{f', {pace}' if pace else ''}")
                    if line:
                        self.note(line)

                yield print_line
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
    """A number with its noun: `1 problem`, `2 problems`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> Table:
    """A plain table of texts. A column whose name ends in `#` is aligned to the right. Without names there is no
    header."""
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
