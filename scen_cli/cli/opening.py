"""Opening a project, with or without its base, the same way for every command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.output import Output

if TYPE_CHECKING:
    from scen_cli.editor import Editor
    from scen_cli.project.project import Project

Dir = Annotated[Path, typer.Option("--dir", envvar="SCEN_DIR", help="The project's folder.", show_default="here")]
Device = Annotated[str, typer.Option(envvar="SCEN_DEVICE", help="auto, cuda, mps or cpu.")]
HERE = Path()


def open_project(folder: Path) -> Project:
    """The project, without its base: no torch."""
    from scen_cli.project.project import Project

    return Project(folder)


def open_editor(folder: Path, device: str, out: Output) -> Editor:
    """The project and its base, loaded."""
    project = open_project(folder)
    load_quietly(f"loading base `{project.settings['model']}`", out)
    from scen_cli.editor import Editor

    return Editor(project, device)


def load_quietly(note: str, out: Output) -> None:
    """Say what takes time, import transformers, and keep its own bars and warnings off the terminal."""
    out.note(note)
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
