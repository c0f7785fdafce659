"""Training tasks, packed so that one forward pass serves many experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scen_cli.model.loaded_base import TokenizedEdit


@dataclass(frozen=True)
class ExpertTask:
    """What one expert is trained on.

    Attributes:
        samples: Its edits (one, unless edits share the expert). Their targets must be learned.
        others: Further samples, such as rephrases. They carry loss, but need not be learned.
    """

    samples: Sequence[TokenizedEdit]
    others: Sequence[TokenizedEdit] = ()


@dataclass(frozen=True)
class FitStatus:
    """How well an expert does its task at present.

    Attributes:
        loss: Mean over samples and others of their mean cross-entropy.
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

    Attributes:
        input_ids: The token ids as rows, (tasks * samples, tokens).
        samples_per_task: The number of rows of each task.
        logit_positions: The positions at which any row predicts a target token. A list, because the layer that gives
            the logits may be on another device.
    """

    def __init__(self, tasks: Sequence[ExpertTask], ids: Tensor, real: Tensor, labels: Tensor, device: torch.device):
        self.tasks, self._ids, self.real, self._labels, self._device = list(tasks), ids, real, labels, device
        self.samples_per_task = ids.shape[1]
        self.input_ids = ids.flatten(0, 1).to(device)
        predicts = labels >= 0
        self.logit_positions: list[int] = predicts.any(dim=0).any(dim=0).nonzero().flatten().tolist()
        # Each target token weighs 1 / (tokens of its target * samples of its task): a mean of means.
        tokens, samples = predicts.sum(dim=2, keepdim=True), predicts.any(dim=2).sum(dim=1)[:, None, None]
        self._weights = (1 / (tokens * samples)).expand_as(labels)[predicts].to(device)
        self._targets = labels[predicts].to(device)
        has_target = predicts[:, :, self.logit_positions].flatten(0, 1)
        self._has_target = has_target.to(device)
        # Of each target token, in the order of `_targets`: its row, and its index within its target.
        self._rows = has_target.nonzero()[:, 0]
        self._token_indices: list[int] = (has_target.cumsum(dim=1)[has_target] - 1).tolist()

    @classmethod
    def from_tasks(cls, tasks: Sequence[ExpertTask], device: torch.device) -> TrainingBatch:
        """Pack tasks into a batch."""
        samples = [[*task.samples, *task.others] for task in tasks]
        tokens = max(len(sample.input_ids) for row in samples for sample in row)
        ids = torch.zeros(len(tasks), max(map(len, samples)), tokens, dtype=torch.long)
        real, labels = torch.zeros_like(ids, dtype=torch.bool), torch.full_like(ids, -1)
        for task, row in enumerate(samples):
            for index, sample in enumerate(row):
                end, count = len(sample.input_ids), sample.target_length
                ids[task, index, :end] = torch.tensor(sample.input_ids)
                real[task, index, :end] = True
                labels[task, index, end - count - 1 : end - 1] = ids[task, index, end - count : end]
            ids[task, len(row) :] = ids[task, 0]
        return cls(tasks, ids, real, labels, device)

    def select(self, kept: Sequence[int]) -> TrainingBatch:
        """A batch of these tasks only. The rows keep their length."""
        ids, real, labels = (tensor[list(kept)] for tensor in (self._ids, self.real, self._labels))
        return TrainingBatch([self.tasks[index] for index in kept], ids, real, labels, self._device)

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
            if margin <= 0:  # a tie counts as wrong: greedy decoding may take the other token
                wrong[task][sample].append(token)
            smallest[task] = min(smallest[task], margin)
        return losses, [
            FitStatus(loss, smallest[index], wrong[index][: len(task.samples)])
            for index, (task, loss) in enumerate(zip(self.tasks, losses.tolist(), strict=True))
        ]
