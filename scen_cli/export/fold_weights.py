"""Edits folded into one matrix: no routing is left, and with it goes what routing kept apart.

What each expert adds to the projection's output at the tokens of its edit's answer is brought into the projection
itself, by regularised least squares (COMEBA-HK's accumulated form): held back at the tokens of what the base answers to
the guard. How much it is held back, lambda, is tried out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from scen_cli.editing.expert_bank import ProjectPatch
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.generation import BATCH
from scen_cli.evaluation.metrics import Figure, Share
from scen_cli.evaluation.samples import REPHRASES
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.keys import read_input
from scen_cli.model.ridge_update import ridge_update
from scen_cli.neurons.build_guard import unedited_prompts
from scen_cli.project.ledger_rows import Edit

KNOWN = (300.0, 1000.0, 2500.0, 6000.0, 15000.0, 40000.0)  # lambda, the weight of the base's own keys: all are tried
TRIED_ON = 200  # edits, and guard prompts, that each lambda is scored on
HELD_OUT = 5  # every fifth guard prompt is for scoring, the others hold the weights where they are
FIGURES = ("reliability", "generality", "locality")


@dataclass(frozen=True)
class Folded:
    """`weight` (d, h) in the projection's place, float32; `known`: the lambda it was found with, or None where one
    expert was put there as it is; its `figures`, and those of the same prompts when they are `routed`."""

    weight: Tensor
    known: float | None
    figures: dict[str, Figure]
    routed: dict[str, Figure]


@dataclass(frozen=True)
class _Questions:
    """Prompts with the answers that are wanted, by figure."""

    prompts: list[str]
    wanted: list[str]
    figure: list[str]

    def figures(self, answers: Sequence[str]) -> dict[str, Figure]:
        right = [(name, a == w) for name, a, w in zip(self.figure, answers, self.wanted, strict=True)]
        return {name: Figure(Share.of([ok for figure, ok in right if figure == name]), None) for name in FIGURES}


def fold(patched: PatchedModel, patch: ProjectPatch, only: int | None, tell: Callable[[str], None]) -> Folded:
    """The edits of a patch in one matrix; of the edit `only` alone, exactly. `tell` hears how each lambda does."""
    edits = [patched.project.find(edit) for edit in patch.expert_of]
    edits = [edit for edit in edits if only in (None, edit.id)]
    guard, answers = _guard(patched)
    fitting, held_out = _divided(guard)
    own = dict(zip(guard, answers, strict=True))
    asked = _questions(edits, held_out, {prompt: patched.template.answer(tokens) for prompt, tokens in own.items()})
    routed = asked.figures(patched.answer(asked.prompts).texts)
    base = patched.edited.base_weight()
    if only is not None:
        weight, known = base + _added(patched, patch, base, only), None
    else:
        keys, residual = _keys(patched, patch, edits, base)
        c = _second_moment(patched, {prompt: own[prompt] for prompt in fitting})
        tried = {lam: base + ridge_update(lam * c, keys, residual).float() for lam in KNOWN}
        some = _questions(edits[:TRIED_ON], held_out[:TRIED_ON], dict(zip(asked.prompts, asked.wanted, strict=True)))
        known = max(tried, key=lambda lam: _score(patched, tried[lam], some, lam, tell))
        weight = tried[known]
    with standing_in(patched.edited, weight):
        found = asked.figures(patched.answer(asked.prompts, patched=False).texts)
    return Folded(weight, known, found, routed)


@contextmanager
def standing_in(edited: EditedLayer, weight: Tensor) -> Iterator[None]:
    """Inside this block the base's projection has this weight; behind it its own, bit for bit."""
    parameter = edited.projection.weight
    own = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(edited.as_stored(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(own)


def _score(
    patched: PatchedModel, weight: Tensor, asked: _Questions, known: float, tell: Callable[[str], None]
) -> float:
    with standing_in(patched.edited, weight):
        found = asked.figures(patched.answer(asked.prompts, patched=False).texts)
    shares = [found[name].patched.value or 0.0 for name in FIGURES]
    tell(f"lambda {known:g}: " + ", ".join(f"{name} {found[name].patched}" for name in FIGURES))
    return sum(shares)


def _guard(patched: PatchedModel) -> tuple[list[str], list[list[int]]]:
    """Prompts that must stay the base's, and the tokens of its answers."""
    kept = [one.prompt for one in patched.project.ledger.guard()]
    seed = int(patched.project.settings["seed"])
    prompts = kept or unedited_prompts(patched.base, patched.template, seed, None)
    edited = {edit.prompt for edit in patched.project.ledger.edits("active")}
    prompts = [prompt for prompt in dict.fromkeys(prompts) if prompt not in edited]
    return prompts, patched.answer(prompts, patched=False).tokens


def _divided(guard: Sequence[str]) -> tuple[list[str], list[str]]:
    """The prompts that the fit goes by, and those that are held out of it."""
    held_out = list(guard[::HELD_OUT])
    return [prompt for place, prompt in enumerate(guard) if place % HELD_OUT], held_out


def _questions(edits: Sequence[Edit], guard: Sequence[str], by_base: dict[str, str]) -> _Questions:
    asked = [(edit.prompt, edit.target, "reliability") for edit in edits]
    for edit in edits:
        texts = [text for text in edit.rephrases if text not in edit.train_rephrases][:REPHRASES]
        asked += [(text, edit.target, "generality") for text in texts]
    asked += [(prompt, by_base[prompt], "locality") for prompt in guard]
    return _Questions(*(list(column) for column in zip(*asked, strict=True)))


def _added(patched: PatchedModel, patch: ProjectPatch, base: Tensor, edit: int) -> Tensor:
    """What (d, h) the expert of an edit adds to the projection."""
    experts, row = patch.bank.experts, int(patch.rows_of([patch.expert_of[edit]]))
    if experts.ranks[row] == 0:
        return experts.full(row).float().to(base.device) - base
    low_rank = experts.gather(torch.tensor([row]))
    return (low_rank.b[0] @ low_rank.a[0]).to(base.device)


def _keys(patched: PatchedModel, patch: ProjectPatch, edits: Sequence[Edit], base: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (h, n) at the tokens from which each edit's answer is written, and what its expert adds there (d, n)."""
    samples = [patched.sample(edit.prompt, edit.target) for edit in edits]
    keys = _inputs(patched, [one.input_ids[:-1] for one in samples], [one.target_length for one in samples])
    residual = [own @ _added(patched, patch, base, edit.id).T for own, edit in zip(keys, edits, strict=True)]
    return torch.cat(keys).T, torch.cat(residual).T


def _second_moment(patched: PatchedModel, own: dict[str, list[int]]) -> Tensor:
    """The mean of k k^T (h, h), float64, at the tokens from which the base writes its answers to the guard."""
    texts = [patched.prompt_ids([prompt])[0] + tokens for prompt, tokens in own.items()]
    sums, count = torch.zeros((), dtype=torch.float64), 0
    for start in range(0, len(texts), BATCH):
        some = slice(start, start + BATCH)
        keys = torch.cat(_inputs(patched, texts[some], [len(tokens) + 1 for tokens in list(own.values())[some]]))
        sums, count = sums.to(keys.device) + keys.double().T @ keys.double(), count + len(keys)
    return sums / max(count, 1)


def _inputs(patched: PatchedModel, texts: Sequence[list[int]], last: Sequence[int]) -> list[Tensor]:
    """The projection's input (n, h), float32, at the last n tokens of each text."""
    found: list[Tensor] = []
    for start in range(0, len(texts), BATCH):
        ids, mask = patched.pad(texts[start : start + BATCH])
        hidden = read_input(patched.model, patched.edited.projection, ids, mask)
        found += [row[-n:].float() for row, n in zip(hidden, last[start : start + BATCH], strict=True)]
    return found
