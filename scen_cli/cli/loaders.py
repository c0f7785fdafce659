"""How commands open a project, with or without its base; and the options that many commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.output import Output
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.editing.editor import Editor
    from scen_cli.editing.project_editor import ProjectEditor
    from scen_cli.project.project import Project

Dir = Annotated[Path, typer.Option("--dir", envvar="SCEN_DIR", help="The project's folder.", show_default="here")]
Device = Annotated[str, typer.Option(envvar="SCEN_DEVICE", help="auto, cuda, mps or cpu.")]
Author = Annotated[
    str | None,
    typer.Option("--author", envvar="SCEN_AUTHOR", help="The author in the log.", show_default="git's user"),
]
Wait = Annotated[
    float, typer.Option("--wait", envvar="SCEN_WAIT", min=0, help="Seconds to wait for another writer, at least 1.")
]
HERE = Path()
Progress = Callable[[int, int], None]  # called with what is done, and with all


def open_project(folder: Path, author: str | None = None, wait: float = 0) -> Project:
    """The project without its base: torch is not imported."""
    from scen_cli.project.project import Project

    return Project(folder, author, wait)


def open_scen_project(folder: Path, author: str | None = None, wait: float = 0) -> Project:
    """The project, for a command about experts and neurons. Raises `UsageError` if it edits by another method."""
    project = open_project(folder, author, wait)
    if project.method:
        raise UsageError(
            f"this project edits by `{project.method}`: this command is for SCEN's experts and neurons",
            hint="`scen edit`, `ask`, `eval`, `revert`, `status`, `log`, `verify` and `backup` are for every method",
        )
    return project


def load_editor(project: Project, device: str, out: Output) -> ProjectEditor:
    """The editor of a project's own method, with the base loaded."""
    if not project.method:
        return load_scen_editor(project, device, out)
    with loading(project.settings["model"], out):
        from scen_cli.baselines.method_editor import MethodEditor

        return MethodEditor(project, device)


def load_scen_editor(project: Project, device: str, out: Output) -> Editor:
    """The editor of a project that edits by SCEN, with the base loaded. Damaged edits are reported as warnings."""
    with loading(project.settings["model"], out):
        from scen_cli.editing.editor import Editor

        editor = Editor(project, device)
    editor.warn = out.warn
    return editor


def open_editor(folder: Path, device: str, out: Output, author: str | None = None, wait: float = 0) -> Editor:
    """`load_scen_editor` of the project in a folder."""
    return load_scen_editor(open_scen_project(folder, author, wait), device, out)


@contextmanager
def loading(model: str, out: Output, then: str = "") -> Iterator[Progress]:
    """A block that loads a base, and `then` counts something: yields `progress(done, total)` for it. Says what it does,
    imports transformers, and silences its own progress bars and warnings."""
    what = f"loading base `{model}`"
    out.note(what)
    with out.working(what) as update:
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        yield lambda done, total: update(f"{done} of {total} {then}")
