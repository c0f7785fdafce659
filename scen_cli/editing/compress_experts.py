"""Full experts become low-rank ones: fitted anew, and taken only if nothing they answered is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from scen_cli.data.records import EditRecord
from scen_cli.editing.editor import Editor, stored_expert
from scen_cli.errors import SomeEditsFailed, UsageError
from scen_cli.experts.fit import RANKS
from scen_cli.model.expert_stack import ExpertStack, LowRank
from scen_cli.model.generation import generate_answers
from scen_cli.model.patch import Patch
from scen_cli.project.ledger_rows import Edit
from scen_cli.project.replace_experts import replace_experts
from scen_cli.project.tensor_files import LowRankArrays
from scen_cli.recipe import Recipe

AT_ONCE = 16  # experts fitted and tried together
STEPS, EXTRA_STEPS = 20, 60  # at least; the latter while a target is not learned


@dataclass(frozen=True)
class Compressed:
    """How many experts became low-rank, and the bytes of their files before and after."""

    experts: int
    before: int
    after: int


def compress(editor: Editor, rank: int | str, tell: Callable[[str, str], None]) -> Compressed:
    """Make every full active expert a low-rank one. Call inside `project.writing()`.

    Each is fitted anew to its edits. Their prompts and rephrases are then asked of both experts: what the full one
    answered rightly the new one must too; with rank "auto" the rank rises until it does. Raises `SomeEditsFailed`,
    which names the answers that would be lost, and `UsageError` if there is nothing to do; then nothing has changed.
    """
    project = editor.project
    ranks = project.ledger.active_ranks()
    served: dict[int, list[Edit]] = {expert: [] for expert, of_it in ranks.items() if of_it == 0}
    for edit in project.ledger.edits("active"):
        if edit.expert in served:
            served[edit.expert].append(edit)
    if not served:
        raise UsageError("there are no full experts to compress", hint="`scen show ID` tells an expert's rank")
    made: dict[int, LowRankArrays] = {}
    worse: list[str] = []
    experts = list(served)
    for start in range(0, len(experts), AT_ONCE):
        rest = {expert: served[expert] for expert in experts[start : start + AT_ONCE]}
        for step in RANKS if rank == "auto" else (rank,):
            found = _fit(editor, rest, step)
            lost = _worse(editor, rest, found)
            made |= {expert: _arrays(fitted) for expert, fitted in found.items()}
            rest = {expert: edits for expert, edits in rest.items() if expert in lost}
            if not rest:
                break
        worse += [line for expert in rest for line in lost[expert]]
        for _expert in experts[start : start + AT_ONCE]:
            tell("", "")
    if worse:
        raise SomeEditsFailed(
            f"{len(worse)} answers would be lost:\n" + "\n".join(worse) + "\nnothing was changed",
            hint="`--rank auto` goes as high as each edit needs" if rank != "auto" else "these need their full experts",
        )
    before, after = replace_experts(project, made)
    return Compressed(len(made), before, after)


def _fit(editor: Editor, served: dict[int, list[Edit]], rank: int | str) -> dict[int, LowRank]:
    recipe = editor.recipe
    changes = {
        "expert": "low-rank",
        "rank": rank,
        "expert_steps": max(STEPS, recipe.expert_steps),
        "extra_steps": max(EXTRA_STEPS, recipe.extra_steps),
    }
    groups = [[_record(edit) for edit in edits] for edits in served.values()]
    fits = [fitted.fit for fitted in editor.fit(groups, Recipe.model_validate({**recipe.model_dump(), **changes}))]
    return {
        expert: fit.expert
        for expert, fit in zip(served, fits, strict=True)
        if isinstance(fit.expert, LowRank) and fit.finite
    }


def _record(edit: Edit) -> EditRecord:
    return EditRecord(
        prompt=edit.prompt, target=edit.target, subject=edit.subject, train_rephrases=edit.train_rephrases
    )


def _arrays(expert: LowRank) -> LowRankArrays:
    stored = stored_expert(expert)
    assert isinstance(stored, LowRankArrays)
    return stored


def _worse(editor: Editor, served: dict[int, list[Edit]], found: dict[int, LowRank]) -> dict[int, list[str]]:
    """For each active expert that answers rightly what the one found for it does not, a line for each answer."""
    lost = {
        expert: [f"edit {edit.id}: no low-rank expert could be fitted to it" for edit in edits]
        for expert, edits in served.items()
        if expert not in found
    }
    asked = [
        (expert, edit, prompt)
        for expert in found
        for edit in served[expert]
        for prompt in (edit.prompt, *edit.train_rephrases, *edit.rephrases)
        if editor.fits(prompt)
    ]
    if not asked:
        return lost
    place = {expert: row for row, expert in enumerate(found)}
    prompts = [prompt for _, _, prompt in asked]
    old = editor.answer(prompts, edits=[edit.id for _, edit, _ in asked]).texts
    new = _answers(editor, prompts, [place[expert] for expert, _, _ in asked], list(found.values()))
    for (expert, edit, prompt), before, after in zip(asked, old, new, strict=True):
        if before == edit.target != after:
            lost.setdefault(expert, []).append(f"edit {edit.id}: {prompt!r} -> {edit.target!r} would be {after!r}")
    return lost


def _answers(editor: Editor, prompts: list[str], choice: list[int], experts: list[LowRank]) -> list[str]:
    """Greedy answers by experts that are not part of the project."""
    none: dict[int, torch.Tensor] = {}
    a, b = torch.cat([one.a for one in experts]), torch.cat([one.b.mT for one in experts])
    stack = ExpertStack(a, b, torch.tensor([len(one.a) for one in experts]), none.__getitem__)
    bank = SimpleNamespace(neurons=torch.zeros(len(experts), editor.edited.ffn_width), experts=stack)
    patch = Patch(editor.edited.projection, editor.edited.down_proj, bank, editor.routing)
    rows = [editor.template.prompt_ids(prompt) for prompt in prompts]

    def generate(batch: list[int], ids: torch.Tensor, mask: torch.Tensor, how: dict[str, Any]) -> torch.Tensor:
        out: torch.Tensor = editor.generate_with(patch, ids, mask, torch.tensor([choice[i] for i in batch]), **how)[0]
        return out

    try:
        longest = editor.longest_answer()
        tokens = generate_answers(editor.base, editor.template, rows, generate, max_new_tokens=longest, edits=choice)
    finally:
        patch.detach()
    return [editor.template.answer(answer) for answer in tokens]
