"""Stage 1 of the paper (section 3.2): train experts, one or many in a batch, each on its own task only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.experts.expert_parameters import ExpertParameters, FullExperts, LowRankExperts
from scen_cli.experts.prefix_cache import Prefix, in_training, record_prefix, replay_prefix
from scen_cli.experts.training_batch import ExpertTask, FitStatus, TrainingBatch
from scen_cli.model.device import device_of
from scen_cli.model.expert_stack import Expert
from scen_cli.model.ffn import EditedLayer
from scen_cli.recipe import Recipe

RANKS = (4, 8, 16, 32, 64)  # tried in this order if the rank is `auto`


@dataclass(frozen=True)
class ExpertFit:
    """A trained expert.

    Attributes:
        expert: The expert, float32.
        losses: The loss before each Adam step.
        wrong_tokens: As in `FitStatus`. A sample without wrong tokens is learned: greedy decoding gives its target.
        logit_margin: As in `FitStatus`.
    """

    expert: Expert
    losses: list[float]
    wrong_tokens: list[list[int]]
    logit_margin: float

    @property
    def finite(self) -> bool:
        tensors = (self.expert,) if isinstance(self.expert, Tensor) else (self.expert.a, self.expert.b)
        return all(bool(tensor.isfinite().all()) for tensor in tensors)


def fit_experts(
    model: PreTrainedModel, edited: EditedLayer, tasks: Sequence[ExpertTask], recipe: Recipe
) -> list[ExpertFit]:
    """Train one expert per task. Each result is what the task alone would give, except for rounding.

    An expert takes `recipe.expert_steps` Adam steps, and up to `recipe.extra_steps` more while a target is not learned.
    If `recipe.stop_when` is `learned`, it stops as soon as every target token has a margin of `recipe.logit_margin`.
    If `recipe.rank` is `auto`, it gets the smallest of `RANKS` that reaches this margin without extra steps, else the
    largest. The expert acts at all positions, prompt tokens included. It is float32 whatever the dtype of the base;
    all other weights are frozen.

    Args:
        model: The base.
        edited: The edited layer.
        tasks: The tasks.
        recipe: The settings of training.

    Returns:
        The experts, in the order of `tasks`.
    """
    if recipe.expert == "full" or recipe.rank != "auto":
        return _fit(model, edited, tasks, recipe)
    fits: dict[int, ExpertFit] = {}
    remaining = list(range(len(tasks)))
    for rank in RANKS:
        changes = {"rank": rank, "extra_steps": recipe.extra_steps if rank == RANKS[-1] else 0}
        new = _fit(model, edited, [tasks[index] for index in remaining], recipe.model_copy(update=changes))
        fits |= dict(zip(remaining, new, strict=True))
        remaining = [index for index in remaining if not fits[index].logit_margin >= recipe.logit_margin]
        if not remaining:
            break
    return [fits[index] for index in range(len(tasks))]


def _fit(model: PreTrainedModel, edited: EditedLayer, tasks: Sequence[ExpertTask], recipe: Recipe) -> list[ExpertFit]:
    """The training loop, at the recipe's rank. Tasks that are done leave the batch."""
    batch = TrainingBatch.from_tasks(tasks, device_of(model))
    prefix = record_prefix(model, edited, batch.input_ids)
    experts: ExpertParameters
    if recipe.expert == "full":
        experts = FullExperts(edited, len(tasks), recipe.expert_lr)
    else:
        experts = LowRankExperts(prefix, batch.real, edited.projection_shape[0], int(recipe.rank), recipe.low_rank_lr)
    pairs = zip(experts.parameters, experts.rates, strict=True)
    optimizer = torch.optim.Adam([{"params": [tensor.requires_grad_()], "lr": rate} for tensor, rate in pairs])
    fits: dict[int, ExpertFit] = {}
    in_batch = list(range(len(tasks)))  # the task at each position of the batch
    losses: list[list[float]] = [[] for _ in tasks]
    step = 0
    with torch.enable_grad():
        while True:
            # Where training may stop, judge the expert as it will be stored: rounded to float16.
            experts.rounded = recipe.stop_when == "learned" or step >= recipe.expert_steps
            task_losses, statuses = batch.grade(logits_of(model, edited, batch, prefix, experts))
            is_last = step == recipe.expert_steps + recipe.extra_steps
            done = [is_last or _may_stop(status, step, recipe) for status in statuses]
            for position, (task, status) in enumerate(zip(in_batch, statuses, strict=True)):
                if done[position]:
                    expert = experts.expert(position)
                    fits[task] = ExpertFit(expert, losses[task], status.wrong_tokens, status.logit_margin)
                else:
                    losses[task].append(status.loss)
            if all(done):
                return [fits[task] for task in range(len(tasks))]
            optimizer.zero_grad()
            task_losses.sum().backward()
            optimizer.step()
            if any(done):
                kept = [position for position, is_done in enumerate(done) if not is_done]
                in_batch = [in_batch[position] for position in kept]
                batch, prefix = _drop_finished(batch, prefix, experts, optimizer, kept)
            step += 1


def _may_stop(status: FitStatus, step: int, recipe: Recipe) -> bool:
    """Whether a task is done before its last step."""
    if recipe.stop_when == "learned":
        return status.logit_margin >= recipe.logit_margin
    return step >= recipe.expert_steps and not any(status.wrong_tokens)


def logits_of(
    model: PreTrainedModel, edited: EditedLayer, batch: TrainingBatch, prefix: Prefix, experts: ExpertParameters
) -> Tensor:
    """Logits (rows, positions, vocabulary) at the batch's `logit_positions`. Layers from l on run, on the prefix."""

    def use_experts(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return experts.output(module, inputs[0], output) if in_training(prefix) else output

    handle = edited.projection.register_forward_hook(use_experts)
    try:
        with replay_prefix(edited, prefix):
            if experts.all_logits:
                return model(input_ids=batch.input_ids, use_cache=False).logits[:, batch.logit_positions]
            return model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=batch.logit_positions).logits
    finally:
        handle.remove()


def _drop_finished(
    batch: TrainingBatch, prefix: Prefix, experts: ExpertParameters, optimizer: torch.optim.Adam, kept: list[int]
) -> tuple[TrainingBatch, Prefix]:
    """Reduce batch, prefix, parameters and the optimizer's state to the tasks at these positions."""
    index = torch.tensor(kept, device=prefix.residual.device)
    for number, group in enumerate(optimizer.param_groups):
        [old] = group["params"]
        new = old.detach()[index].requires_grad_()
        state = optimizer.state.pop(old)
        optimizer.state[new] = {
            name: tensor[index] if tensor.shape == old.shape else tensor for name, tensor in state.items()
        }
        group["params"], experts.parameters[number] = [new], new
    experts.select(index)
    rows = torch.arange(len(batch.input_ids), device=index.device).reshape(-1, batch.samples_per_task)[index].flatten()
    return batch.select(kept), prefix.select(rows)
