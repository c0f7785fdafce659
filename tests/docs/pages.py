"""The pages of the documentation, and what they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import typer

from scen_cli.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
SITE = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
PAGES = [
    README,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "benchmarks/LOG.md")),
    *SITE,
]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> dict[str, typer.core.TyperCommand]:
    """Every command by its full name without `scen`: `edit`, `data inspect`."""

    def walk(group: typer.core.TyperGroup, path: tuple[str, ...]) -> Iterator[tuple[str, typer.core.TyperCommand]]:
        for name, command in group.commands.items():
            if isinstance(command, typer.core.TyperGroup):
                yield from walk(command, (*path, name))
            else:
                yield " ".join((*path, name)), command

    return dict(walk(typer.main.get_command(app), ()))


def options(command: typer.core.TyperCommand) -> set[str]:
    """The options of a command, with `--help`."""
    found = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return {option for option in found if option.startswith("-")} | {"--help", "-h"}


def headings(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def command_lines(text: str) -> list[str]:
    """Each `scen ...` that a page shows: in code blocks line by line, and in code spans."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [part.strip() for line in lines + spans for part in line.split("#")[0].split("|") if is_command(part)]


def is_command(text: str) -> bool:
    return re.match(r"\s*scen [a-z]", text) is not None
