"""`scen verify` as far as it takes the base: keys, and what the edited model says."""

from __future__ import annotations

import torch

from scen_cli.editing.editor import Editor
from scen_cli.errors import DamageFound
from scen_cli.project.check import Problem

EXACT, ROUNDED = 1e-4, 3e-2  # by which keys may differ, of their length: another machine, a base of a smaller dtype


def key_problems(editor: Editor) -> list[Problem]:
    """Edits whose stored keys are not what the base gives for their prompts now."""
    served: dict[int, list[str]] = {}
    for edit in editor.project.ledger.edits("active", "superseded"):
        if edit.expert is not None:
            served.setdefault(edit.expert, []).append(edit.prompt)
    tolerance = EXACT if editor.model.dtype == torch.float32 else ROUNDED
    problems = []
    for expert, prompts in served.items():
        edit = editor.project.find(expert)
        try:
            stored = torch.from_numpy(editor.project.keys(edit))
        except DamageFound:
            continue  # that is told already, by what its file is
        now = editor.keys(prompts)
        if stored.shape != now.shape or not bool(((stored - now).norm(dim=1) <= tolerance * now.norm(dim=1)).all()):
            problems.append(Problem(str(edit.file), f"the base gives another key for edit {expert} now", expert))
    return problems


def behaviour_problems(editor: Editor) -> list[Problem]:
    """Edits active that their own prompt does not call, or that do not say their target."""
    edits = [edit for edit in editor.project.ledger.edits("active") if edit.expert is not None]
    if not edits:
        return []
    answers = editor.answer([edit.prompt for edit in edits])
    problems = []
    for edit, called, text in zip(edits, answers.edits, answers.texts, strict=True):
        if called != edit.expert:
            what = f"its prompt calls {f'edit {called}' if called else 'no edit'}"
        elif text != edit.target:
            what = f"it says {text!r}, not {edit.target!r}"
        else:
            continue
        problems.append(Problem(str(edit.file), f"edit {edit.id}: {what}", edit.id))
    return problems
