"""SERAC's counterfactual model: a copy of the base that follows a prepended edit if the prompt is in its scope.

The authors train a separate small model. No small model shares every base's vocabulary, so here the base's own last
layers are fine-tuned in float32; the copy shares all other parameters with the base.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.training_examples import take_step
from scen_cli.baselines.weight_method import run_with
from scen_cli.model.template import Prompt, SecondTurn


def copy_parameters(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedModel:
    """A copy of a model with its own parameters of these names; it shares all others."""
    shared = {id(parameter): parameter for name, parameter in model.named_parameters() if name not in names}
    return copy.deepcopy(model, shared)


def train_counterfactual(
    context: MethodContext, names: Sequence[str], steps: int, lr: float, mini_batch: int
) -> PreTrainedModel:
    """Fine-tune the base's parameters of these names. Each step has `mini_batch` prompts in scope and as many out of
    scope."""
    model = copy_parameters(context.base.model, names)
    parameters = dict(model.named_parameters())
    weights = {name: parameters[name].detach().float().clone().requires_grad_() for name in names}
    optimizer = torch.optim.Adam(weights.values(), lr=lr)
    choose = random.Random(context.seed)
    known = context.answered
    for _ in range(steps):
        examples = context.examples([pair for _ in range(mini_batch) for pair in _draw_pairs(context, known, choose)])
        take_step(optimizer, examples.losses(run_with(model, weights, examples.ids)).mean())
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(weights[name])
    return model


def _draw_pairs(
    context: MethodContext, known: list[tuple[str, str]], choose: random.Random
) -> list[tuple[Prompt, str]]:
    """A prompt in the scope of a prepended edit, and one out of scope that keeps the base's answer. Half of the edits
    get another edit's answer, so that the model cannot memorise the answers."""
    edit = choose.choice(context.development)
    prepended, prompt = (choose.choice((edit.prompt, *edit.rephrases)) for _ in range(2))
    target = choose.choice((edit.target, choose.choice(known)[1]))
    other, answer = choose.choice(known)
    return [(SecondTurn(prepended, target, prompt), target), (SecondTurn(prepended, target, other), answer)]
