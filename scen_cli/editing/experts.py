"""Stage 1: the expert of one edit (the paper's section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.editing.prefix import in_training, standing_still
from scen_cli.editing.recipe import Recipe
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.patch import apply_expert


@dataclass(frozen=True)
class ExpertFit:
    """`weight` (d, h), float32; the loss before each step; what the expert still gets wrong.

    `wrong_tokens` are positions within the target whose greedy token, given the target up to
    there, is another one: empty means greedy decoding gives exactly the target.
    """

    weight: Tensor
    losses: list[float]
    wrong_tokens: list[int]


def fit_expert(
    model: PreTrainedModel,
    edited: EditedLayer,
    prefix: Tensor,
    input_ids: Tensor,
    target_length: int,
    recipe: Recipe,
) -> ExpertFit:
    """Train a copy of the base's W_down until it has taken `recipe.expert_steps` Adam steps.

    `prefix` is what `record_prefix` gave for `input_ids` (1, tokens): prompt and target. The last
    `target_length` ids are the answer and the end token, and alone carry the cross-entropy. The
    expert acts at every position. It is float32 whatever the base's dtype; all else is frozen.
    """
    weight = edited.base_weight().requires_grad_()

    def use_expert(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return apply_expert(weight, module, inputs[0]) if in_training(prefix) else output

    def target_logits() -> Tensor:
        logits = model(input_ids=input_ids, use_cache=False).logits
        return logits[0, -target_length - 1 : -1].float()

    target = input_ids[0, -target_length:]
    optimizer = torch.optim.Adam([weight], lr=recipe.expert_lr)
    losses = []
    handle = edited.down_proj.register_forward_hook(use_expert)
    try:
        with standing_still(edited, prefix), torch.enable_grad():
            for _ in range(recipe.expert_steps):
                loss = nn.functional.cross_entropy(target_logits(), target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            with torch.no_grad():
                wrong = (target_logits().argmax(dim=-1) != target).nonzero().flatten().tolist()
    finally:
        handle.remove()
    return ExpertFit(weight.detach(), losses, wrong)
