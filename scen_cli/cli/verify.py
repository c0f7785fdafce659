"""`scen verify`: the ledger against itself, every file, the base and what the model says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.loaders import HERE, Device, Dir, Wait, open_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet, counted
from scen_cli.errors import DamageFound, UsageError

if TYPE_CHECKING:
    from scen_cli.project.check import Problem


def verify(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also every byte, every tensor, and keys as the base gives them now.")
    ] = False,
    behaviour: Annotated[
        bool, typer.Option("--behaviour", help="Also whether every edit still calls itself and says its target.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove stray files; make merged neurons and seal anew.")
    ] = False,
    device: Device = "auto",
    wait: Wait = 0,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check the ledger against its log and its files. Exit code 12 on damage.

    The quick check looks at rows, names and sizes, SQLite's own check, the
    tables' columns and the hashes of the log. It needs no base; neither does
    `--repair`, which changes nothing that an edit says.

    Example: scen verify --deep
    """
    from scen_cli.project import check

    out = Output(as_json, quiet)
    project = open_project(dir, wait=wait)
    done: list[str] = []
    if repair:
        with project.writing():
            done = check.repair(project, deep)
    problems = check.verify(project, deep)
    if (deep or behaviour) and not any(problem.where == check.LEDGER for problem in problems):
        problems += _by_the_base(deep, behaviour, dir, device, out)
    lines = [*done, *(f"{problem.where}: {problem.what}" for problem in problems)]
    edits = len(project.ledger.edits()) if not problems else None
    data = {"edits": edits, "repaired": done, "problems": [vars(problem) for problem in problems]}
    out.result(data, *(lines or [f"{edits} edits: {_said(deep, behaviour, project.method is None)}"]))
    if problems:
        mended = all(problem.kind != "damage" for problem in problems)
        hint = f"`scen verify{' --deep' if deep else ''} --repair`" if mended else "restore the project from a backup"
        raise DamageFound(
            counted(len(problems), "problem") + " found", hint=hint if mended else f"{hint}, or revert its edit"
        )


def _by_the_base(deep: bool, behaviour: bool, dir: Dir, device: str, out: Output) -> list[Problem]:
    project = open_project(dir)
    if project.method and behaviour:
        raise UsageError(f"`--behaviour` is for SCEN's experts: `scen eval` scores what `{project.method}` answers")
    if project.method:  # its file is all there is, and that was checked
        return []
    editor = open_editor(dir, device, out)
    from scen_cli.editing.verify_base import behaviour_problems, key_problems

    return [*(key_problems(editor) if deep else []), *(behaviour_problems(editor) if behaviour else [])]


def _said(deep: bool, behaviour: bool, has_keys: bool) -> str:
    said = ["every file is as it was committed" if deep else "ledger, log and files agree"]
    if deep and has_keys:
        said.append("keys are what the base gives")
    if behaviour:
        said.append("every active edit calls itself and says its target")
    return ", ".join(said)
