"""`scen verify`: check the ledger, every file, the base, and what the edited model answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.loaders import HERE, Device, Dir, Wait, load_scen_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet, counted
from scen_cli.errors import DamageFound, UsageError

if TYPE_CHECKING:
    from scen_cli.project.check import Problem
    from scen_cli.project.project import Project


def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Also every byte, every tensor, and the base's keys.")] = False,
    behaviour: Annotated[
        bool, typer.Option("--behaviour", help="Also whether every edit's prompt activates it and gives its target.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Move stray edit files to `lost/`, remove others, rebuild W_merge and the seal."),
    ] = False,
    accept_ledger: Annotated[
        bool,
        typer.Option(
            "--accept-ledger",
            help="With `--repair`: go on with a ledger that is an older copy of the sealed one. Files of edits that it "
            "does not know are moved to `lost/`.",
        ),
    ] = False,
    device: Device = "auto",
    wait: Wait = 0,
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check the ledger against its log and its files. Exit code 12 if there is damage.

    The quick check compares rows, file names and sizes, SQLite's own check, the columns of the tables and the hashes
    of the log. Neither it nor `--repair` needs the base, and `--repair` changes nothing that an edit answers.

    Example: scen verify --deep
    """
    from scen_cli.project import check
    from scen_cli.project.project import OLDER_HINT

    out = Output(as_json, quiet)
    project = open_project(dir, wait=wait)
    if project.method and behaviour:
        raise UsageError(f"`--behaviour` is for SCEN's experts: `scen eval` scores what `{project.method}` answers")
    if accept_ledger and not repair:
        raise UsageError("`--accept-ledger` belongs to `--repair`")
    repaired: list[str] = []
    if accept_ledger:
        with project.writing(even_if_older=True):
            repaired = check.accept_ledger(project)
    if repair:
        with project.writing(even_if_older=True):
            repaired += check.repair(project, deep)
    with out.counting("edit files") as progress:
        problems = check.verify(project, deep, progress)
    ledger_is_sound = not any(problem.where == check.LEDGER for problem in problems)
    if (deep or behaviour) and ledger_is_sound and not project.method:
        problems += _problems_with_base(project, deep, behaviour, device, out)
    lines = [*repaired, *(f"{problem.where}: {problem.what}" for problem in problems)]
    edits = len(project.ledger.edits()) if not problems else None
    data = {"edits": edits, "repaired": repaired, "problems": [vars(problem) for problem in problems]}
    out.result(data, *(lines or [f"{edits} edits: {_summary(deep, behaviour, project.method is None)}"]))
    if problems:
        hint = "restore the project from a backup, or revert the damaged edit"
        if any(check.NOT_SEALED in problem.what for problem in problems):
            hint = OLDER_HINT
        if all(problem.kind != "damage" for problem in problems):
            hint = f"`scen verify{' --deep' if deep else ''} --repair`"
        raise DamageFound(counted(len(problems), "problem") + " found", hint=hint)


def _problems_with_base(project: Project, deep: bool, behaviour: bool, device: str, out: Output) -> list[Problem]:
    editor = load_scen_editor(project, device, out)
    from scen_cli.editing.verify_base import behaviour_problems, key_problems

    with out.counting("keys") as progress:
        problems = key_problems(editor, progress) if deep else []
    with out.working("asking the prompt of each active edit"):
        return [*problems, *(behaviour_problems(editor) if behaviour else [])]


def _summary(deep: bool, behaviour: bool, has_keys: bool) -> str:
    checked = ["every file is as it was committed" if deep else "ledger, log and files agree"]
    if deep and has_keys:
        checked.append("the base gives the same keys")
    if behaviour:
        checked.append("every active edit is activated by its prompt and gives its target")
    return ", ".join(checked)
