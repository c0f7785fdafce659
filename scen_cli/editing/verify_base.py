"""The part of `scen verify` that needs the base: keys, and what the edited model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from scen_cli.editing.editor import Editor
from scen_cli.errors import DamageFound, UsageError
from scen_cli.model.base import check_unchanged
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.generation import Progress, no_progress
from scen_cli.project.check import Problem
from scen_cli.project.ledger_rows import Edit

# Relative difference that keys may have: on another machine, and for a base in a smaller dtype.
EXPERTS_AT_ONCE = 256  # whose keys are in memory together
FLOAT32_TOLERANCE, LOW_PRECISION_TOLERANCE = 1e-4, 3e-2


def key_problems(editor: Editor, progress: Progress = no_progress) -> list[Problem]:
    """Whether the base's weights have changed, and edits whose stored keys it no longer gives for their prompts."""
    try:
        check_unchanged(editor.base, editor.project.settings, every_byte=True)
    except UsageError as error:
        return [Problem(str(editor.base.folder), str(error))]
    edits_of: dict[int, list[Edit]] = {}
    for edit in editor.project.ledger.edits("active", "superseded"):
        if edit.expert is not None:
            edits_of.setdefault(edit.expert, []).append(edit)
    experts, problems = list(edits_of), []
    for start in range(0, len(experts), EXPERTS_AT_ONCE):
        some = experts[start : start + EXPERTS_AT_ONCE]
        problems += _changed_keys(editor, [edits_of[expert] for expert in some])
        progress(start + len(some), len(experts))
    return problems


def _changed_keys(editor: Editor, experts: Sequence[list[Edit]]) -> list[Problem]:
    """The experts, each given by its edits, whose stored keys the base no longer gives."""
    tolerance = FLOAT32_TOLERANCE if editor.model.dtype == torch.float32 else LOW_PRECISION_TOLERANCE
    owners = [editor.project.find(edits[0].expert or 0) for edits in experts]
    rows = [
        editor.key_tokens(edit.prompt, owner.subject_names)
        for owner, edits in zip(owners, experts, strict=True)
        for edit in edits
    ]
    whole = replace(editor.routing.key_config, segments=False)
    keys = read_segment_keys(editor.base, editor.edited, rows, whole)[0].split([len(edits) for edits in experts])
    problems = []
    for edit, now in zip(owners, keys, strict=True):
        try:
            stored = torch.from_numpy(editor.project.files.keys(edit))
        except DamageFound:
            continue  # reported already, by the check of its file
        if stored.shape != now.shape or not bool(((stored - now).norm(dim=1) <= tolerance * now.norm(dim=1)).all()):
            problems.append(Problem(str(edit.file), f"the base now gives another key for edit {edit.id}", edit.id))
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
