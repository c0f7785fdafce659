"""`scen ask`: the base's answer, the edited model's answer, and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from scen_cli.cli.loaders import HERE, Device, Dir, load_editor, load_scen_editor, open_project
from scen_cli.cli.output import Json, Output, Quiet, table
from scen_cli.errors import UsageError

if TYPE_CHECKING:
    from scen_cli.editing.editor import Editor
    from scen_cli.editing.project_editor import ProjectEditor

STRONGEST, TRACED = 3, 10  # neurons shown
AT_ONCE = 16  # prompts of a file between two reports of progress
BLOCKED = -1.0  # activation of an edit that the subject filter blocks (scen_cli/model/subject_filter.py)


def ask(
    prompt: Annotated[str | None, typer.Argument(help="The prompt, without the template.", show_default=False)] = None,
    file: Annotated[
        str | None, typer.Option(help="Answer all prompts of a JSONL file, in one load of the base; - reads stdin.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Show every step of routing: segments, more neurons, nearest guard prompts.")
    ] = False,
    device: Device = "auto",
    dir: Dir = HERE,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer a prompt with the base and with the edited model, and show the edits with the largest activations.

    Example: scen ask "Where was Ada born?"
    """
    out = Output(as_json, quiet)
    prompts = _prompts(prompt, file, trace)
    project = open_project(dir)
    if project.method and trace:
        raise UsageError("`--trace` shows SCEN's routing: this project edits by another method")
    if file is not None:
        _ask_all(load_editor(project, device, out), prompts, out)
        return
    [prompt] = prompts
    if project.method:
        _ask(load_editor(project, device, out), prompt, out)
        return
    editor = load_scen_editor(project, device, out)
    with editor.snapshot(), out.working("answering"):
        _ask_routed(editor, prompt, trace, out)


def _prompts(prompt: str | None, file: str | None, trace: bool) -> list[str]:
    """The prompts to answer. Raises `UsageError` unless there is a prompt or a file, and for what is no prompt."""
    from scen_cli.data.records import clean_text
    from scen_cli.data.suites import read_prompts

    if (prompt is None) == (file is None):
        raise UsageError("give a prompt, or `--file` with many")
    if file is not None:
        if trace:
            raise UsageError("`--trace` shows one prompt's routing: it needs a prompt, not `--file`")
        return read_prompts(Path(file))
    try:
        return [clean_text(str(prompt))]
    except ValueError as error:
        raise UsageError(f"the prompt {error}") from error


def _ask_all(editor: ProjectEditor, prompts: list[str], out: Output) -> None:
    """Of many prompts: the answers, and the edit that was activated."""
    rows = []
    with out.counting("prompts answered") as progress:
        for start in range(0, len(prompts), AT_ONCE):
            some = prompts[start : start + AT_ONCE]
            patched = editor.answer(some)
            base = list(patched.texts)  # where no edit was activated, the base has answered already
            routed = [place for place, edit in enumerate(patched.edits) if edit or editor.project.method]
            if routed:
                texts = editor.answer([some[place] for place in routed], patched=False).texts
                for place, text in zip(routed, texts, strict=True):
                    base[place] = text
            rows += list(zip(some, patched.edits, base, patched.texts, strict=True))
            progress(len(rows), len(prompts))
    columns = ("prompt", "edit", "base", "patched")
    out.result([dict(zip(columns, row, strict=True)) for row in rows], table(columns, rows))


def _ask(editor: ProjectEditor, prompt: str, out: Output) -> None:
    """Of a method that does not route: both answers, and the method's explanation."""
    [base], [patched] = editor.answer([prompt], patched=False).texts, editor.answer([prompt]).texts
    method, why = editor.project.method, editor.explain(prompt)
    data = {"prompt": prompt, "base": base, "patched": patched, "method": method, "why": why}
    out.result(data, table(("", ""), [("base", base), ("patched", patched), (f"why ({method})", why)]))


def _ask_routed(editor: Editor, prompt: str, trace: bool, out: Output) -> None:
    answers = editor.answer([prompt])
    patched, edit = answers.texts[0], answers.edits[0]
    base = editor.answer([prompt], patched=False).texts[0] if edit else patched
    routed, theta = editor.route([prompt]), editor.patch().theta
    biases = editor.patch().bank.biases.tolist()
    ranked = sorted(zip(routed.activations[0].tolist(), routed.active, biases, strict=True), reverse=True)
    neurons = [
        {
            "edit": edit_id,
            "activation": round(activation, 4),
            "bias": round(bias, 4),
            "prompt": row.prompt,
            "target": row.target,
        }
        for activation, edit_id, bias in ranked[: TRACED if trace else STRONGEST]
        for row in [editor.project.find(edit_id)]
    ]
    data = {"prompt": prompt, "base": base, "patched": patched, "edit": edit, "theta": theta, "neurons": neurons}
    why = f"edit {edit} was activated" if edit else "no edit was activated: the base answers"
    shown: list[RenderableType] = [table(("", ""), [("base", base), ("patched", patched), ("why", why)])]
    if neurons:
        rows = [(n["edit"], *_beside_theta(n["activation"], theta), n["prompt"], n["target"]) for n in neurons]
        shown.append(table(("edit#", "activation#", "", "theta#", "prompt", "target"), rows))
    if trace:
        _add_trace(editor, prompt, data, shown)
    out.result(data, *shown)


def _beside_theta(activation: float, theta: float) -> tuple[str, str, str]:
    """An activation compared with theta; or that the prompt does not name the edit's subject."""
    if activation <= BLOCKED:
        return "not named", "", ""
    return f"{activation:.4f}", ">" if activation > theta else "<", f"{theta:.4g}"


def _add_trace(editor: Editor, prompt: str, data: dict[str, Any], shown: list[RenderableType]) -> None:
    from scen_cli.editing.trace import trace

    found = trace(editor, prompt)
    data["trace"] = asdict(found)
    segments = [(s.text, s.edit, s.activation and f"{s.activation:.4f}") for s in found.segments]
    pooling = "the last token" if editor.recipe.key_pooling == "last" else "the mean of all tokens"
    shown += [
        "",
        f"key: layer {editor.edited.index}, {pooling}, length {found.key_norm:.2f}",
        table(("segment", "strongest edit#", "activation#"), segments),
    ]
    for edit_id in found.blocked:
        subject = editor.project.find(edit_id).subject
        shown.append(f"edit {edit_id} is above theta, but the prompt does not name its subject: {subject}")
    if biased := [(n["edit"], f"{n['bias']:.4f}") for n in data["neurons"] if n["bias"]]:
        shown += ["", "biases, already subtracted", table(("edit#", "bias#"), biased)]
    if found.guard:
        guard = [(text, f"{cosine:.4f}") for text, cosine in found.guard]
        shown += ["", table(("nearest guard prompts", "cosine#"), guard)]
