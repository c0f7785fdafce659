"""`scen ask`: what the base says, what the edited model says, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from scen_cli.cli.loaders import HERE, Device, Dir, open_editor, open_method_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.baselines.method_editor import MethodEditor
    from scen_cli.editing.editor import Editor

STRONGEST, TRACED = 3, 10  # neurons shown
BLOCKED = -1.0  # of a neuron whose edit's subject the prompt does not name (scen_cli/model/subject_filter.py)


def ask(
    prompt: Annotated[str, typer.Argument(help="The prompt, without the template.")],
    trace: Annotated[
        bool, typer.Option("--trace", help="Show more neurons, what was read, and the guard prompts nearest.")
    ] = False,
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
    project = open_project(dir)
    if project.method:
        if trace:
            raise UsageError("`--trace` shows SCEN's routing: this project edits by another method")
        _ask_method(open_method_editor(project, device, out), prompt, out)
        return
    editor = open_editor(dir, device, out)
    with editor.snapshot():
        _ask(editor, prompt, trace, out)


def _ask_method(editor: MethodEditor, prompt: str, out: Output) -> None:
    base, patched = editor.answer([prompt], patched=False)[0], editor.answer([prompt])[0]
    why = editor.why(prompt)
    data = {"prompt": prompt, "base": base, "patched": patched, "method": editor.project.method, "why": why}
    rows = [("base", base), ("patched", patched), (f"why ({editor.project.method})", why)]
    out.result(data, table(("", ""), rows))


def _ask(editor: Editor, prompt: str, trace: bool, out: Output) -> None:
    base = editor.answer([prompt], patched=False).texts[0]
    answers = editor.answer([prompt])
    patched, fired = answers.texts[0], answers.edits[0]
    routed = editor.route([prompt])
    theta, biases = editor.patch().theta, editor.patch().bank.biases.tolist()
    ranked = sorted(zip(routed.activations[0].tolist(), routed.active, biases, strict=True), reverse=True)
    neurons = [
        {
            "edit": edit_id,
            "activation": round(activation, 4),
            "bias": round(bias, 4),
            "prompt": found.prompt,
            "target": found.target,
        }
        for activation, edit_id, bias in ranked[: TRACED if trace else STRONGEST]
        for found in [editor.project.find(edit_id)]
    ]
    data = {"prompt": prompt, "base": base, "patched": patched, "edit": fired, "theta": theta, "neurons": neurons}
    why = f"edit {fired} fired" if fired else "no edit fired: the base's own answer"
    shown: list[RenderableType] = [table(("", ""), [("base", base), ("patched", patched), ("why", why)])]
    if neurons:
        rows = [(n["edit"], *_against(n["activation"], theta), n["prompt"], n["target"]) for n in neurons]
        shown.append(table(("edit#", "activation#", "", "theta#", "prompt", "target"), rows))
    if trace:
        _trace(editor, prompt, data, shown)
    out.result(data, *shown)


def _against(activation: float, theta: float) -> tuple[str, str, str]:
    """An activation beside theta; of an edit whose subject the prompt does not name, that it is blocked."""
    if activation <= BLOCKED:
        return "not named", "", ""
    return f"{activation:.4f}", ">" if activation > theta else "<", f"{theta:.4g}"


def _trace(editor: Editor, prompt: str, data: dict[str, Any], shown: list[RenderableType]) -> None:
    """What was read of the prompt, and what stands guard near it."""
    from scen_cli.editing.trace import trace

    found = trace(editor, prompt)
    data["trace"] = asdict(found)
    read = [(part.text, part.edit, part.activation and f"{part.activation:.4f}") for part in found.parts]
    shown += [
        "",
        f"read at layer {editor.edited.index} ({editor.recipe.key_pooling}); length of the key {found.key_norm:.2f}",
        table(("what was read", "strongest edit#", "activation#"), read),
    ]
    for edit_id in found.blocked:
        subject = editor.project.find(edit_id).subject
        shown.append(f"edit {edit_id} would have fired, but the prompt does not name its subject: {subject}")
    if biased := [(n["edit"], f"{n['bias']:.4f}") for n in data["neurons"] if n["bias"]]:
        shown += ["", "biases, taken off already", table(("edit#", "bias#"), biased)]
    if found.guard:
        guard = [(text, f"{nearness:.4f}") for text, nearness in found.guard]
        shown += ["", table(("nearest guard prompts", "cosine#"), guard)]
