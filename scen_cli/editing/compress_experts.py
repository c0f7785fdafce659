"""Replace full experts by low-rank ones, fitted again, if no right answer is lost."""

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
from scen_cli.project.change_edits import replace_experts
from scen_cli.project.edit_files import LowRankArrays
from scen_cli.project.ledger_rows import Edit
from scen_cli.recipe import Recipe

GROUP = 16  # experts fitted and compared together
MIN_STEPS, MIN_EXTRA_STEPS = 20, 60  # the extra steps are for targets that are not learned yet


@dataclass(frozen=True)
class Compressed:
    """How many experts became low-rank, and the bytes of their files before and after."""

    experts: int
    before: int
    after: int


def compress(editor: Editor, rank: int | str, progress: Callable[[str, str], None]) -> Compressed:
    """Make every full expert of an active edit low-rank. Call inside `project.writing()`.

    Each expert is fitted again to its edits. Then both experts answer the prompts and rephrases of these edits: what
    the full one answers rightly, the new one must answer rightly too.

    Args:
        editor: The project, loaded.
        rank: The rank, or `auto`: the lowest of `RANKS` that loses nothing, for each expert.
        progress: Called once for each expert.

    Raises:
        SomeEditsFailed: Right answers would be lost; the message names them, and nothing has changed.
        UsageError: There are no full experts.
    """
    project = editor.project
    edits_of: dict[int, list[Edit]] = {expert: [] for expert, r in project.ledger.active_ranks().items() if r == 0}
    for edit in project.ledger.edits("active"):
        if edit.expert in edits_of:
            edits_of[edit.expert].append(edit)
    if not edits_of:
        raise UsageError("there are no full experts to compress", hint="`scen show ID` prints an expert's rank")
    fitted: dict[int, LowRankArrays] = {}
    lost: list[str] = []
    experts = list(edits_of)
    for start in range(0, len(experts), GROUP):
        group = experts[start : start + GROUP]
        rest = {expert: edits_of[expert] for expert in group}
        for rank_tried in RANKS if rank == "auto" else (rank,):
            found = _fit(editor, rest, rank_tried)
            lost_by = _lost_answers(editor, rest, found)
            fitted |= {expert: _to_arrays(low_rank) for expert, low_rank in found.items()}
            rest = {expert: edits for expert, edits in rest.items() if expert in lost_by}
            if not rest:
                break
        lost += [line for expert in rest for line in lost_by[expert]]
        for _expert in group:
            progress("", "")
    if lost:
        raise SomeEditsFailed(
            f"{len(lost)} right answers would be lost:\n" + "\n".join(lost) + "\nnothing was changed",
            hint="`--rank auto` raises the rank where an edit needs it"
            if rank != "auto"
            else "these edits need full experts",
        )
    before, after = replace_experts(project, fitted)
    return Compressed(len(fitted), before, after)


def _fit(editor: Editor, edits_of: dict[int, list[Edit]], rank: int | str) -> dict[int, LowRank]:
    recipe = editor.recipe
    changes = {
        "expert": "low-rank",
        "rank": rank,
        "expert_steps": max(MIN_STEPS, recipe.expert_steps),
        "extra_steps": max(MIN_EXTRA_STEPS, recipe.extra_steps),
    }
    groups = [[_record(edit) for edit in edits] for edits in edits_of.values()]
    fits = editor.fit(groups, Recipe.model_validate({**recipe.model_dump(), **changes}))
    pairs = zip(edits_of, (fitted.fit for fitted in fits), strict=True)
    return {expert: fit.expert for expert, fit in pairs if isinstance(fit.expert, LowRank) and fit.finite}


def _record(edit: Edit) -> EditRecord:
    names = ("prompt", "target", "subject", "train_rephrases")
    return EditRecord(**{name: getattr(edit, name) for name in names})


def _to_arrays(expert: LowRank) -> LowRankArrays:
    arrays = stored_expert(expert)
    assert isinstance(arrays, LowRankArrays)
    return arrays


def _lost_answers(editor: Editor, edits_of: dict[int, list[Edit]], found: dict[int, LowRank]) -> dict[int, list[str]]:
    """By expert, a line for each prompt that the full expert answers rightly and the low-rank one does not."""
    lost = {
        expert: [f"edit {edit.id}: no low-rank expert could be fitted" for edit in edits]
        for expert, edits in edits_of.items()
        if expert not in found
    }
    asked = [
        (expert, edit, prompt)
        for expert in found
        for edit in edits_of[expert]
        for prompt in (edit.prompt, *edit.train_rephrases, *edit.rephrases)
        if editor.fits(prompt)
    ]
    if not asked:
        return lost
    row_of = {expert: row for row, expert in enumerate(found)}
    prompts = [prompt for _, _, prompt in asked]
    old = editor.answer(prompts, edits=[edit.id for _, edit, _ in asked]).texts
    new = _answers(editor, prompts, [row_of[expert] for expert, _, _ in asked], list(found.values()))
    for (expert, edit, prompt), before, after in zip(asked, old, new, strict=True):
        if before == edit.target != after:
            lost.setdefault(expert, []).append(f"edit {edit.id}: {prompt!r} -> {edit.target!r} would be {after!r}")
    return lost


def _answers(editor: Editor, prompts: list[str], choice: list[int], experts: list[LowRank]) -> list[str]:
    """Greedy answers by experts that are not part of the project; `choice` is the expert of each prompt."""
    no_full_experts: dict[int, torch.Tensor] = {}
    a, b = torch.cat([expert.a for expert in experts]), torch.cat([expert.b.mT for expert in experts])
    stack = ExpertStack(a, b, torch.tensor([len(expert.a) for expert in experts]), no_full_experts.__getitem__)
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
