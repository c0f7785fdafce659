"""Stage 1: the expert of one edit (the paper's section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.editing.prefix import in_training, standing_still
from scen_cli.editing.recipe import Recipe
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.patch import apply_expert

CHECK_EVERY = 5  # extra steps between two looks at what is learned


@dataclass(frozen=True)
class Sample:
    """Prompt and target as `input_ids` (1, tokens), and what `record_prefix` gave for them.

    The last `target_length` ids are the answer and the end token, and alone carry the cross-entropy.
    """

    prefix: Tensor
    input_ids: Tensor
    target_length: int

    @property
    def target(self) -> Tensor:
        return self.input_ids[0, -self.target_length :]


@dataclass(frozen=True)
class ExpertFit:
    """`weight` (d, h), float32; the loss before each step; what the expert still gets wrong.

    `wrong_tokens`, for each sample, are positions within the target whose greedy token, given the target
    up to there, is another one: empty means greedy decoding gives exactly the target.
    """

    weight: Tensor
    losses: list[float]
    wrong_tokens: list[list[int]]


def fit_expert(
    model: PreTrainedModel, edited: EditedLayer, samples: list[Sample], recipe: Recipe, others: Sequence[Sample] = ()
) -> ExpertFit:
    """Train a copy of the base's W_down until it has taken `recipe.expert_steps` Adam steps, and at most
    `recipe.extra_steps` more while a target is not learned.

    One sample, or the few that are to share the expert: the loss is then the mean of theirs, and of `others`, which
    help it but need not be learned. The expert acts at every position. It is float32 whatever the base's
    dtype; all else is frozen.
    """
    weight = edited.base_weight().requires_grad_()
    everything = [*samples, *others]

    def use_expert(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        mine = any(in_training(sample.prefix) for sample in everything)
        return apply_expert(weight, module, inputs[0]) if mine else output

    def target_logits(sample: Sample) -> Tensor:
        with standing_still(edited, sample.prefix):
            logits = model(input_ids=sample.input_ids, use_cache=False).logits
        return logits[0, -sample.target_length - 1 : -1].float()

    def wrong_tokens() -> list[list[int]]:
        with torch.no_grad():
            predicted = [target_logits(sample).argmax(dim=-1) for sample in samples]
        pairs = zip(predicted, samples, strict=True)
        return [(tokens != sample.target).nonzero().flatten().tolist() for tokens, sample in pairs]

    optimizer = torch.optim.Adam([weight], lr=recipe.expert_lr)
    losses: list[float] = []

    def step() -> None:
        optimizer.zero_grad()
        total = 0.0
        for sample in everything:
            loss = nn.functional.cross_entropy(target_logits(sample), sample.target) / len(everything)
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)

    handle = edited.projection.register_forward_hook(use_expert)
    try:
        with torch.enable_grad():
            for _ in range(recipe.expert_steps):
                step()
            wrong = wrong_tokens()
            while any(wrong) and len(losses) < recipe.expert_steps + recipe.extra_steps:
                for _ in range(min(CHECK_EVERY, recipe.expert_steps + recipe.extra_steps - len(losses))):
                    step()
                wrong = wrong_tokens()
    finally:
        handle.remove()
    return ExpertFit(weight.detach(), losses, wrong)
