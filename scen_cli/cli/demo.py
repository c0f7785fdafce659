"""`scen demo`: a whole run on the embedded base."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from scen_cli.cli.figures import figure_tables
from scen_cli.cli.loaders import load_quietly
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.cli.run_edits import edit_suite

SHOWN = 8  # edits in the table of answers before and after


def demo(
    dir: Annotated[Path, typer.Option("--dir", help="A new folder for the project.")] = Path("scen-demo"),
    edits: Annotated[int, typer.Option(min=1, max=500, help="How many facts to correct.")] = 40,
    recipe: Annotated[str, typer.Option(help="closed-form, joint, key or paper.")] = "closed-form",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Correct facts of a small embedded Llama, score the edits, export the model: the whole job in one command.

    Example: scen demo
    """
    out = Output(as_json, quiet)
    from scen_cli.project.project import refuse_existing

    refuse_existing(dir)
    load_quietly("loading torch, transformers and the demo base", out)
    from scen_cli.data.suites import load_suite
    from scen_cli.editing.create_project import new_project
    from scen_cli.editing.editor import Editor
    from scen_cli.evaluation.evaluate_project import evaluate
    from scen_cli.evaluation.evaluation import record_evaluation
    from scen_cli.export.transformers_folder import export_checkpoint

    started = time.perf_counter()
    at, scen = f"--dir {dir}", _command_name()
    out.note(f"$ scen init --model demo --recipe {recipe} {at}")
    editor = Editor(new_project(dir, "demo", recipe=recipe))
    suite = load_suite("demo")
    records = suite.edits[:edits]
    before = editor.answer([record.prompt for record in records], patched=False).texts

    out.note(f"$ scen edit --suite demo --first {edits} {at}")
    edit_suite(editor, replace(suite, edits=records), out)

    out.note(f"$ scen eval --suite demo {at}")
    with out.counting("answers") as progress:
        evaluation = evaluate(editor, suite, progress=progress)
    record_evaluation(editor.project, evaluation)
    after = editor.answer([record.prompt for record in records])

    out.note(f"$ scen export --out {dir / 'export'} {at}")
    export_checkpoint(editor, dir / "export")
    seconds = time.perf_counter() - started

    answers = [
        {"prompt": record.prompt, "before": old, "after": new, "wanted": record.target, "edit": edit}
        for record, old, new, edit in zip(records, before, after.texts, after.edits, strict=True)
    ]
    rows = [(a["edit"], a["prompt"], a["before"], a["after"], a["wanted"]) for a in answers[:SHOWN]]
    out.result(
        {"dir": str(dir), "seconds": round(seconds, 1), "answers": answers, "evaluation": evaluation.as_dict()},
        f"the first {len(rows)} of {len(answers)} edits",
        table(("edit#", "prompt", "before", "after", "wanted"), rows),
        "",
        *figure_tables(evaluation),
        "",
        f"{seconds:.0f} s without imports. Try next:",
        f'  {scen} ask "{records[0].rephrases[0]}" {at}',
        f"  {scen} show 1 {at}",
        f"  {scen} revert 1 {at}",
        f"  {scen} status {at}",
    )


def _command_name() -> str:
    """What to type to call scen again: `scen`, if the shell finds this very program under that name."""
    program = Path(sys.argv[0])
    found = shutil.which("scen")
    if program.name != "scen" or (found and Path(found).resolve() == program.resolve()):
        return "scen"
    return str(program)
