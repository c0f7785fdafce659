"""Folds all active edits into one matrix, without routing.

The experts' effect at the tokens of the edits' answers is fitted into the projection's weight by regularised least
squares (`ridge_update`, the accumulated form of COMEBA-HK). lambda weights the second moment of the keys at the base's
own answers to the guard prompts: a large lambda keeps the base's answers, a small one the edits'. All of `LAMBDAS` are
tried, and the one with the best sum of figures wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.editing.project_patch import ProjectPatch
from scen_cli.evaluation.metrics import Figure, Share
from scen_cli.evaluation.samples import PAPER_ROLES, REPHRASES
from scen_cli.model.ffn import EditedLayer, ridge_update
from scen_cli.model.generation import BATCH
from scen_cli.model.keys import must_stand_alone, read_input
from scen_cli.neurons.build_guard import unedited_prompts
from scen_cli.project.ledger_rows import Edit

LAMBDAS = (300.0, 1000.0, 2500.0, 6000.0, 15000.0, 40000.0)
SCORED = 200  # edits, and guard prompts, that score each lambda
Scored = list[tuple[str, str, str]]  # prompts, with the right answer of each, and the figure that it counts for
HELD_OUT = 5  # every fifth guard prompt is held out of the fit, for scoring


@dataclass(frozen=True)
class FoldedWeight:
    """The projection's new weight, with its figures.

    Attributes:
        weight: (d, h), float32.
        ridge_lambda: The lambda that won; None for the exact weight of a single expert.
        figures: Reliability, generality and locality of the folded weight.
        routed: The same figures on the same prompts with routing.
    """

    weight: Tensor
    ridge_lambda: float | None
    figures: dict[str, Figure]
    routed: dict[str, Figure]


def fold(
    patched: PatchedModel, patch: ProjectPatch, only_edit: int | None, progress: Callable[[str], None]
) -> FoldedWeight:
    """Fold the edits of a patch into one weight.

    Args:
        patched: The project's model.
        patch: The active edits.
        only_edit: Fold this edit alone, exactly: its expert's weight.
        progress: Called with a line about each lambda.
    """
    edits = [patched.project.find(edit) for edit in patch.expert_of if only_edit in (None, edit)]
    guard, tokens = _guard_answers(patched)
    base_tokens = dict(zip(guard, tokens, strict=True))
    base_answers = {prompt: patched.template.answer(answer) for prompt, answer in base_tokens.items()}
    held_out = guard[::HELD_OUT]
    scored = _scored_prompts(edits, held_out, base_answers)
    routed = _figures(patched, scored, routed=True)
    base, ridge_lambda = patched.edited.base_weight(), None
    if only_edit is not None:
        weight = base + _expert_delta(patched, patch, base, only_edit)
    else:
        keys, residual = _edit_keys(patched, patch, edits, base)
        fitted = {prompt: base_tokens[prompt] for index, prompt in enumerate(guard) if index % HELD_OUT}
        c = _second_moment(patched, fitted)
        weights = {value: base + ridge_update(value * c, keys, residual).float() for value in LAMBDAS}
        sample = _scored_prompts(edits[:SCORED], held_out[:SCORED], base_answers)

        def score(value: float) -> float:
            with replaced_weight(patched.edited, weights[value]):
                figures = _figures(patched, sample, routed=False)
            progress(f"lambda {value:g}: " + ", ".join(f"{name} {figures[name].patched}" for name in PAPER_ROLES))
            return sum(figures[name].patched.value or 0.0 for name in PAPER_ROLES)

        ridge_lambda = max(weights, key=score)
        weight = weights[ridge_lambda]
    with replaced_weight(patched.edited, weight):
        figures = _figures(patched, scored, routed=False)
    return FoldedWeight(weight, ridge_lambda, figures, routed)


@contextmanager
def replaced_weight(edited: EditedLayer, weight: Tensor) -> Iterator[None]:
    """Replace the projection's weight inside this block; restore it bit for bit afterwards."""
    parameter = edited.projection.weight
    original = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(edited.as_stored(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(original)


def _guard_answers(patched: PatchedModel) -> tuple[list[str], list[list[int]]]:
    """Guard prompts that are not edited, and the tokens of the base's answers."""
    prompts = [row.prompt for row in patched.project.ledger.guard()]
    seed = int(patched.project.settings["seed"])
    prompts = prompts or unedited_prompts(patched.base, patched.template, seed, None)
    edited = {edit.prompt for edit in patched.project.ledger.edits("active")}
    prompts = [prompt for prompt in dict.fromkeys(prompts) if prompt not in edited]
    return prompts, patched.answer(prompts, patched=False).tokens


def _figures(patched: PatchedModel, scored: Scored, *, routed: bool) -> dict[str, Figure]:
    """Answer all prompts with the patched model, or with the base as it is now."""
    answers = patched.answer([prompt for prompt, _target, _role in scored], patched=routed).texts
    right = [(role, answer == target) for answer, (_prompt, target, role) in zip(answers, scored, strict=True)]
    return {name: Figure(Share.of([ok for role, ok in right if role == name])) for name in PAPER_ROLES}


def _scored_prompts(edits: Sequence[Edit], guard: Sequence[str], base_answers: dict[str, str]) -> Scored:
    rows = [(edit.prompt, edit.target, "reliability") for edit in edits]
    for edit in edits:
        rephrases = [text for text in edit.rephrases if text not in edit.train_rephrases][:REPHRASES]
        rows += [(text, edit.target, "generality") for text in rephrases]
    return rows + [(prompt, base_answers[prompt], "locality") for prompt in guard]


def _expert_delta(patched: PatchedModel, patch: ProjectPatch, base: Tensor, edit: int) -> Tensor:
    """The difference (d, h) between the weight of an edit's expert and the base's."""
    experts, row = patch.bank.experts, int(patch.rows_of([patch.expert_of[edit]]))
    if experts.ranks[row] == 0:
        return experts.full(row).float().to(base.device) - base
    low_rank = experts.gather(torch.tensor([row]))
    return (low_rank.b[0] @ low_rank.a[0]).to(base.device)


def _edit_keys(
    patched: PatchedModel, patch: ProjectPatch, edits: Sequence[Edit], base: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys (h, n) at the tokens that predict each edit's answer, and the expert's change of the output there (d, n)."""
    samples = [patched.tokenize_pair(edit.prompt, edit.target) for edit in edits]
    batches = _inputs(patched, [one.input_ids[:-1] for one in samples], [one.target_length for one in samples])
    keys = [key for batch in batches for key in batch]
    residual = [own @ _expert_delta(patched, patch, base, edit.id).T for own, edit in zip(keys, edits, strict=True)]
    return torch.cat(keys).T, torch.cat(residual).T


def _second_moment(patched: PatchedModel, base_tokens: dict[str, list[int]]) -> Tensor:
    """The mean of k k^T (h, h), float64, at the tokens that predict the base's answers to the guard."""
    texts = [patched.prompt_ids([prompt])[0] + tokens for prompt, tokens in base_tokens.items()]
    lengths = [len(tokens) + 1 for tokens in base_tokens.values()]
    sums, count = torch.zeros((), dtype=torch.float64), 0
    for batch in _inputs(patched, texts, lengths):
        keys = torch.cat(batch)
        sums, count = sums.to(keys.device) + keys.double().T @ keys.double(), count + len(keys)
    return sums / max(count, 1)


def _inputs(patched: PatchedModel, texts: Sequence[list[int]], last: Sequence[int]) -> Iterator[list[Tensor]]:
    """The projection's input (n, h), float32, at the last n tokens of each text, batch by batch."""
    size = 1 if must_stand_alone(patched.model, max(map(len, texts), default=0)) else BATCH
    for start in range(0, len(texts), size):
        ids, mask = patched.pad(texts[start : start + size])
        hidden = read_input(patched.model, patched.edited.projection, ids, mask)
        yield [row[-n:].float() for row, n in zip(hidden, last[start : start + size], strict=True)]
