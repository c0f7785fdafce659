"""Stage 1 of the paper (section 3.2): train experts, one or many in a batch, each on its own task only.

`TrainingBatch` packs tasks, so that one forward pass serves many experts, and computes their losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.experts.expert_parameters import ExpertParameters, FullExperts, LowRankExperts
from scen_cli.experts.prefix_cache import Prefix, in_training, record_prefix, replay_prefix
from scen_cli.model.device import device_of
from scen_cli.model.expert_stack import Expert
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.keys import must_stand_alone
from scen_cli.model.loaded_base import TokenizedEdit
from scen_cli.recipe import Recipe


@dataclass(frozen=True)
class ExpertTask:
    """What one expert is trained on.

    Attributes:
        samples: Its edits (one, unless edits share the expert). Their targets must be learned.
        others: Further samples, such as rephrases. They carry loss, but need not be learned.
        kept: Other questions, with the base's own answers as targets: the expert must not change them. They carry loss
            of their own weight, and do not count otherwise.
    """

    samples: Sequence[TokenizedEdit]
    others: Sequence[TokenizedEdit] = ()
    kept: Sequence[TokenizedEdit] = ()

    @property
    def longest(self) -> int:
        """The tokens of its longest sample."""
        return max(len(sample.input_ids) for sample in (*self.samples, *self.others, *self.kept))


@dataclass(frozen=True)
class FitStatus:
    """How well an expert does its task at present.

    Attributes:
        loss: Mean over samples and others of their mean cross-entropy, plus that of the kept ones times its weight.
        logit_margin: The smallest difference between the logit of a target token and the next best logit.
        wrong_tokens: For each sample, the indices within its target whose most likely token is another one, given the
            target up to there.
    """

    loss: float
    logit_margin: float
    wrong_tokens: list[list[int]]


class TrainingBatch:
    """Right-padded token rows of several tasks. A task with fewer samples repeats its first, masked.

    No attention mask is needed: causal attention never looks at padding on the right.

    Args:
        tasks: The tasks.
        ids: Token ids, (tasks, samples, tokens).
        real: True for tokens that are not padding or repeated, same shape.
        labels: The next token where it belongs to a target, otherwise -1, same shape.
        device: The base's device.
        kept_weight: The weight of the kept samples' loss.

    Attributes:
        input_ids: The token ids as rows, (tasks * samples, tokens).
        samples_per_task: The number of rows of each task.
        logit_positions: The positions at which any row predicts a target token. A list, because the layer that gives
            the logits may be on another device.
    """

    def __init__(
        self,
        tasks: Sequence[ExpertTask],
        ids: Tensor,
        real: Tensor,
        labels: Tensor,
        device: torch.device,
        kept_weight: float = 0.0,
    ) -> None:
        self.tasks, self._ids, self.real, self._labels, self._device = list(tasks), ids, real, labels, device
        self._kept_weight = kept_weight
        self.samples_per_task = ids.shape[1]
        self.input_ids = ids.flatten(0, 1).to(device)
        predicts = labels >= 0
        self.logit_positions: list[int] = predicts.any(dim=0).any(dim=0).nonzero().flatten().tolist()
        # Each target token weighs 1 / (tokens of its target * samples of its task): a mean of means. So do the kept.
        self._first_kept = [len(task.samples) + len(task.others) for task in tasks]
        is_kept = torch.arange(ids.shape[1])[None] >= torch.tensor(self._first_kept)[:, None]
        learned, kept = ((predicts.any(dim=2) & mask).sum(dim=1)[:, None] for mask in (~is_kept, is_kept))
        samples = torch.where(is_kept, kept / kept_weight if kept_weight else torch.inf, learned)[:, :, None]
        self._weights = (1 / (predicts.sum(dim=2, keepdim=True) * samples)).expand_as(labels)[predicts].to(device)
        self._targets = labels[predicts].to(device)
        has_target = predicts[:, :, self.logit_positions].flatten(0, 1)
        self._has_target = has_target.to(device)
        # Of each target token, in the order of `_targets`: its row, and its index within its target.
        self._rows = has_target.nonzero()[:, 0]
        self._token_indices: list[int] = (has_target.cumsum(dim=1)[has_target] - 1).tolist()

    @classmethod
    def from_tasks(cls, tasks: Sequence[ExpertTask], device: torch.device, kept_weight: float = 0.0) -> TrainingBatch:
        """Pack tasks into a batch."""
        samples = [[*task.samples, *task.others, *task.kept] for task in tasks]
        tokens = max(task.longest for task in tasks)
        ids = torch.zeros(len(tasks), max(map(len, samples)), tokens, dtype=torch.long)
        real, labels = torch.zeros_like(ids, dtype=torch.bool), torch.full_like(ids, -1)
        for task, row in enumerate(samples):
            for index, sample in enumerate(row):
                end, count = len(sample.input_ids), sample.target_length
                ids[task, index, :end] = torch.tensor(sample.input_ids)
                real[task, index, :end] = True
                labels[task, index, end - count - 1 : end - 1] = ids[task, index, end - count : end]
            ids[task, len(row) :] = ids[task, 0]
        return cls(tasks, ids, real, labels, device, kept_weight)

    def select(self, kept: Sequence[int]) -> TrainingBatch:
        """A batch of these tasks only. The rows keep their length."""
        ids, real, labels = (tensor[list(kept)] for tensor in (self._ids, self.real, self._labels))
        tasks = [self.tasks[index] for index in kept]
        return TrainingBatch(tasks, ids, real, labels, self._device, self._kept_weight)

    def grade(self, logits: Tensor) -> tuple[Tensor, list[FitStatus]]:
        """Compute the losses and the status of every task.

        Args:
            logits: Logits at `logit_positions`, (tasks * samples, positions, vocabulary).

        Returns:
            The losses with gradients, (tasks,), and the status of each task.
        """
        # Only positions that predict a target token count: (target tokens of all rows, vocabulary).
        predicted = logits[self._has_target].float()
        token_losses = nn.functional.cross_entropy(predicted, self._targets, reduction="none") * self._weights
        task_of_token = self._rows.to(self._device) // self.samples_per_task
        losses = torch.zeros(len(self.tasks), device=self._device).index_add(0, task_of_token, token_losses)

        # Margin of a token: its logit minus the best logit of any other token. NaN (training diverged) is the worst.
        with torch.no_grad():
            own = predicted.gather(1, self._targets[:, None])[:, 0]
            best_other = predicted.scatter(1, self._targets[:, None], -torch.inf).max(dim=1).values
            margins = (own - best_other).nan_to_num(-torch.inf, torch.inf, -torch.inf).tolist()

        # Collect margins and wrong tokens by task. `others` count for the margin, but their wrong tokens are dropped.
        wrong: list[list[list[int]]] = [[[] for _ in range(self.samples_per_task)] for _ in self.tasks]
        smallest = [torch.inf] * len(self.tasks)
        for row, token, margin in zip(self._rows.tolist(), self._token_indices, margins, strict=True):
            task, sample = divmod(row, self.samples_per_task)
            if sample >= self._first_kept[task]:
                continue
            if margin <= 0:  # a tie counts as wrong: greedy decoding may take the other token
                wrong[task][sample].append(token)
            smallest[task] = min(smallest[task], margin)
        return losses, [
            FitStatus(loss, smallest[index], wrong[index][: len(task.samples)])
            for index, (task, loss) in enumerate(zip(self.tasks, losses.tolist(), strict=True))
        ]


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
    alone = [must_stand_alone(model, task.longest) for task in tasks]
    if any(alone) and len(tasks) > 1:
        short = [task for task, is_alone in zip(tasks, alone, strict=True) if not is_alone]
        fits_of_short = iter(fit_experts(model, edited, short, recipe) if short else [])
        return [
            fit_experts(model, edited, [task], recipe)[0] if is_alone else next(fits_of_short)
            for task, is_alone in zip(tasks, alone, strict=True)
        ]
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
    batch = TrainingBatch.from_tasks(tasks, device_of(model), recipe.kept_weight)
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
