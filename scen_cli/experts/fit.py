"""Stage 1: experts (the paper's section 3.2), one or many at once, each trained on its own lesson alone."""

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

RANKS = (4, 8, 16, 32, 64)  # what rank "auto" tries


@dataclass(frozen=True)
class ExpertFit:
    """An expert, float32; the loss before each step; what it still gets wrong, and by how much it leads (`FitStatus`).

    A sample without `wrong_tokens` is learned: greedy decoding gives exactly its target.
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
    model: PreTrainedModel, edited: EditedLayer, lessons: Sequence[ExpertTask], recipe: Recipe
) -> list[ExpertFit]:
    """Train an expert for each lesson, all at once, each as if alone but for rounding.

    Each takes `recipe.expert_steps` Adam steps, and at most `recipe.extra_steps` more while a target is not learned;
    with `stop_when` "learned" it stops as soon as every target token leads by `recipe.lead`. With `rank` "auto" it gets
    the smallest of `RANKS` that comes to this lead without extra steps, or the largest. Experts act at every position.
    They are float32 whatever the base's dtype; all else is frozen.
    """
    if recipe.expert == "full" or recipe.rank != "auto":
        return _fit(model, edited, lessons, recipe, recipe.rank, recipe.extra_steps)
    fits: dict[int, ExpertFit] = {}
    rest = list(range(len(lessons)))
    for rank in RANKS:
        extra = recipe.extra_steps if rank == RANKS[-1] else 0
        found = _fit(model, edited, [lessons[place] for place in rest], recipe, rank, extra)
        fits |= dict(zip(rest, found, strict=True))
        rest = [place for place in rest if not fits[place].logit_margin >= recipe.logit_margin]
        if not rest:
            break
    return [fits[place] for place in range(len(lessons))]


def _fit(
    model: PreTrainedModel,
    edited: EditedLayer,
    lessons: Sequence[ExpertTask],
    recipe: Recipe,
    rank: int | str,
    extra_steps: int,
) -> list[ExpertFit]:
    batch = TrainingBatch.of(lessons, device_of(model))
    prefix = record_prefix(model, edited, batch.input_ids)
    experts = _begin(edited, batch, prefix, recipe, rank)
    pairs = zip(experts.parameters, experts.rates, strict=True)
    optimizer = torch.optim.Adam([{"params": [one.requires_grad_()], "lr": rate} for one, rate in pairs])
    fits: dict[int, ExpertFit] = {}
    places = list(range(len(lessons)))  # of the lessons still in the batch
    losses: list[list[float]] = [[] for _ in lessons]
    step = 0
    with torch.enable_grad():
        while True:
            experts.rounded = recipe.stop_when == "learned" or step >= recipe.expert_steps
            each, graded = batch.grade(logits_of(model, edited, batch, prefix, experts))
            at_end = step == recipe.expert_steps + extra_steps
            done = [at_end or _may_stop(one, step, recipe) for one in graded]
            for place, one, is_done in zip(range(len(places)), graded, done, strict=True):
                if is_done:
                    expert = experts.expert(place)
                    fits[places[place]] = ExpertFit(expert, losses[places[place]], one.wrong_tokens, one.logit_margin)
                else:
                    losses[places[place]].append(one.loss)
            if all(done):
                return [fits[place] for place in range(len(lessons))]
            optimizer.zero_grad()
            each.sum().backward()
            optimizer.step()
            if any(done):
                stay = [place for place, is_done in enumerate(done) if not is_done]
                places = [places[place] for place in stay]
                batch, prefix = _narrow(batch, prefix, experts, optimizer, stay)
            step += 1


def _begin(
    edited: EditedLayer, batch: TrainingBatch, prefix: Prefix, recipe: Recipe, rank: int | str
) -> ExpertParameters:
    if recipe.expert == "full":
        return FullExperts(edited, len(batch.lessons), recipe.expert_lr)
    d, _h = edited.projection_shape
    return LowRankExperts(prefix, batch.real, d, int(rank), recipe.low_rank_lr)


def _may_stop(graded: FitStatus, step: int, recipe: Recipe) -> bool:
    """Whether a lesson need not go on, whatever steps are left."""
    if recipe.stop_when == "learned":
        return graded.logit_margin >= recipe.logit_margin
    return step >= recipe.expert_steps and not any(graded.wrong_tokens)


def logits_of(
    model: PreTrainedModel, edited: EditedLayer, batch: TrainingBatch, prefix: Prefix, experts: ExpertParameters
) -> Tensor:
    """Logits (rows, places, vocabulary) where anything is predicted: layers l..L on the cached prefix."""

    def use_experts(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return experts.output(module, inputs[0], output) if in_training(prefix) else output

    handle = edited.projection.register_forward_hook(use_experts)
    try:
        with replay_prefix(edited, prefix):
            if experts.literal:
                return model(input_ids=batch.input_ids, use_cache=False).logits[:, batch.places]
            return model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=batch.places).logits
    finally:
        handle.remove()


def _narrow(
    batch: TrainingBatch, prefix: Prefix, experts: ExpertParameters, optimizer: torch.optim.Adam, stay: list[int]
) -> tuple[TrainingBatch, Prefix]:
    """Go on with the lessons that `stay` alone: their rows, their parameters, and what Adam remembers of them."""
    kept = torch.tensor(stay, device=prefix.residual.device)
    for place, group in enumerate(optimizer.param_groups):
        [old] = group["params"]
        new = old.detach()[kept].requires_grad_()
        state = optimizer.state.pop(old)
        optimizer.state[new] = {name: one[kept] if one.shape == old.shape else one for name, one in state.items()}
        group["params"], experts.parameters[place] = [new], new
    experts.keep(kept)
    rows = torch.arange(len(batch.input_ids), device=kept.device).reshape(-1, batch.width)[kept].flatten()
    return batch.only(stay), prefix.of(rows)
