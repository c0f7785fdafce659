"""`scen ask`: what the base says, what the edited model says, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scen_cli.cli.opening import HERE, Device, Dir, open_editor
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.editor import Editor

STRONGEST = 3


def ask(
    prompt: Annotated[str, typer.Argument(help="The prompt, without the template.")],
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The base's answer, the edited model's answer, and the edits whose neurons were strongest.

    Example: scen ask "Where was Ada born?"
    """
    from scen_cli.data.records import clean_text

    out = Output(as_json, quiet)
    try:
        prompt = clean_text(prompt)
    except ValueError as error:
        raise UsageError(f"the prompt {error}") from error
    editor = open_editor(dir, device, out)
    with editor.steady():
        return _ask(editor, prompt, out)


def _ask(editor: Editor, prompt: str, out: Output) -> None:
    base = editor.answer([prompt], patched=False).texts[0]
    answers = editor.answer([prompt])
    patched, fired = answers.texts[0], answers.edits[0]
    routed = editor.route([prompt])
    theta = editor.patch().theta
    ranked = sorted(zip(routed.activations[0].tolist(), routed.in_force, strict=True), reverse=True)[:STRONGEST]
    neurons = [
        {"edit": edit_id, "activation": round(activation, 4), "prompt": found.prompt, "target": found.target}
        for activation, edit_id in ranked
        for found in [editor.project.find(edit_id)]
    ]
    data = {"prompt": prompt, "base": base, "patched": patched, "edit": fired, "theta": theta, "neurons": neurons}
    why = f"edit {fired} fired" if fired else "no edit fired: the base's own answer"
    shown = [table(("", ""), [("base", base), ("patched", patched), ("why", why)])]
    if neurons:
        rows = [
            (
                n["edit"],
                f"{n['activation']:.4f}",
                ">" if n["activation"] > theta else "<",
                theta,
                n["prompt"],
                n["target"],
            )
            for n in neurons
        ]
        shown.append(table(("edit#", "activation#", "", "theta#", "prompt", "target"), rows))
    out.result(data, *shown)
