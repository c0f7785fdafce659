"""SERAC's counterfactual model: a copy of the base that answers by the edit in front of a prompt, if it is about it.

The authors' is a small model that was trained on its own. No small model shares every base's vocabulary, so here the
base's own last layers are fine-tuned, in float32; all else the two share.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from scen_cli.baselines.method import MethodContext
from scen_cli.baselines.training_examples import Examples
from scen_cli.model.template import Prompt, SecondTurn


def copied(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedModel:
    """A copy of a model that has parameters of its own by these names, and shares all others."""
    shared = {id(one): one for name, one in model.named_parameters() if name not in names}
    own: PreTrainedModel = copy.deepcopy(model, shared)
    return own


def trained_counterfactual(
    given: MethodContext, names: Sequence[str], steps: int, lr: float, mini_batch: int
) -> PreTrainedModel:
    """The base with these of its parameters fine-tuned, on so many prompts in scope a step and as many out of it."""
    model = copied(given.base.model, names)
    parameters = dict(model.named_parameters())
    weights = {name: parameters[name].detach().float().clone().requires_grad_() for name in names}
    optimizer = torch.optim.Adam(weights.values(), lr=lr)
    choose = random.Random(given.seed)
    known = [pair for pair in given.unedited if pair[1]]
    for _ in range(steps):
        pairs = [pair for _ in range(mini_batch) for pair in _lessons(given, known, choose)]
        examples = Examples.of(given.template, pairs, given.base.device)
        cast = {name: one.to(parameters[name].dtype) for name, one in weights.items()}
        options = {"input_ids": examples.ids, "use_cache": False}
        loss = examples.losses(functional_call(model, cast, kwargs=options).logits).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(weights[name])
    return model


def _lessons(given: MethodContext, known: list[tuple[str, str]], choose: random.Random) -> list[tuple[Prompt, str]]:
    """A prompt in the scope of the edit in front of it, and one out of it, to be answered as the base does.
    Half of the edits have another's answer, so that there is little to learn by heart."""
    edit = choose.choice(given.development)
    put, asked = (choose.choice((edit.prompt, *edit.rephrases)) for _ in range(2))
    target = choose.choice((edit.target, choose.choice(known)[1]))
    other, answer = choose.choice(known)
    return [(SecondTurn(put, target, asked), target), (SecondTurn(put, target, other), answer)]
