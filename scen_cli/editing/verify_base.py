"""The part of `scen verify` that needs the base: keys, and what the edited model answers."""

from __future__ import annotations

import torch

from scen_cli.editing.editor import Editor
from scen_cli.errors import DamageFound, UsageError
from scen_cli.model.base import check_unchanged
from scen_cli.project.check import Problem

# Relative difference that keys may have: on another machine, and for a base in a smaller dtype.
FLOAT32_TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-4, 3e-2


def key_problems(editor: Editor) -> list[Problem]:
    """Whether the base's weights have changed, and edits whose stored keys it no longer gives for their prompts."""
    try:
        check_unchanged(editor.base, editor.project.settings, every_byte=True)
    except UsageError as error:
        return [Problem(str(editor.base.folder), str(error))]
    prompts_of: dict[int, list[str]] = {}
    for edit in editor.project.ledger.edits("active", "superseded"):
        if edit.expert is not None:
            prompts_of.setdefault(edit.expert, []).append(edit.prompt)
    tolerance = FLOAT32_TOLERANCE if editor.model.dtype == torch.float32 else LOW_PRECISION_TOLERANCE
    problems = []
    for expert, prompts in prompts_of.items():
        edit = editor.project.find(expert)
        try:
            stored = torch.from_numpy(editor.project.files.keys(edit))
        except DamageFound:
            continue  # reported already, by the check of its file
        now = editor.keys(prompts, edit.subject_names)
        if stored.shape != now.shape or not bool(((stored - now).norm(dim=1) <= tolerance * now.norm(dim=1)).all()):
            problems.append(Problem(str(edit.file), f"the base now gives another key for edit {expert}", expert))
    return problems


def behaviour_problems(editor: Editor) -> list[Problem]:
    """Active edits that their own prompt is not routed to, or that do not answer with their target."""
    edits = [edit for edit in editor.project.ledger.edits("active") if edit.expert is not None]
    if not edits:
        return []
    answers = editor.answer([edit.prompt for edit in edits])
    problems = []
    for edit, routed, text in zip(edits, answers.edits, answers.texts, strict=True):
        if routed != edit.expert:
            what = f"its prompt is routed to {f'edit {routed}' if routed else 'no edit'}"
        elif text != edit.target:
            what = f"it answers {text!r}, not {edit.target!r}"
        else:
            continue
        problems.append(Problem(str(edit.file), f"edit {edit.id}: {what}", edit.id))
    return problems
