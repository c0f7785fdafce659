"""Opening a project, with or without its base, the same way for every command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.output import Output
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.baselines.method_editor import MethodEditor
    from scen_cli.editing.editor import Editor
    from scen_cli.project.project import Project

Dir = Annotated[Path, typer.Option("--dir", envvar="SCEN_DIR", help="The project's folder.", show_default="here")]
Device = Annotated[str, typer.Option(envvar="SCEN_DEVICE", help="auto, cuda, mps or cpu.")]
Author = Annotated[
    str | None,
    typer.Option(
        "--author", envvar="SCEN_AUTHOR", help="Who makes the change, for the log.", show_default="git's user"
    ),
]
Wait = Annotated[
    float, typer.Option("--wait", envvar="SCEN_WAIT", min=0, help="Seconds to wait for another writer, at least 1.")
]
HERE = Path()


def open_project(folder: Path, author: str | None = None, wait: float = 0) -> Project:
    """The project, without its base: no torch."""
    from scen_cli.project.project import Project

    return Project(folder, author, wait)


def open_scens_own(folder: Path, author: str | None = None, wait: float = 0) -> Project:
    """The project, for a command that is about experts and neurons.

    Raises `UsageError` for a project that edits by another method than SCEN.
    """
    project = open_project(folder, author, wait)
    if project.method:
        raise UsageError(
            f"this project edits by `{project.method}`: this command is for SCEN's experts and neurons",
            hint="`scen edit`, `ask`, `eval`, `revert`, `status`, `log`, `verify` and `backup` are for every method",
        )
    return project


def open_editor(folder: Path, device: str, out: Output, author: str | None = None, wait: float = 0) -> Editor:
    """The project and its base, loaded. Edits that are active but damaged are told of.

    Raises `UsageError` for a project that edits by another method than SCEN.
    """
    project = open_scens_own(folder, author, wait)
    load_quietly(f"loading base `{project.settings['model']}`", out)
    from scen_cli.editing.editor import Editor

    editor = Editor(project, device)
    editor.warn = out.warn
    return editor


def open_method_editor(project: Project, device: str, out: Output) -> MethodEditor:
    """The base of a project that edits by another method, loaded, with all that was learned."""
    load_quietly(f"loading base `{project.settings['model']}`", out)
    from scen_cli.baselines.method_editor import MethodEditor

    return MethodEditor(project, device)


def load_quietly(note: str, out: Output) -> None:
    """Say what takes time, import transformers, and keep its own bars and warnings off the terminal."""
    out.note(note)
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
