"""Prompts with their targets, ready to be learned from: token ids, and which of them carry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scen_cli.errors import UsageError
from scen_cli.model.template import Prompt, Template

IGNORED = -100  # the label of a token that carries no loss


def padded_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (rows, tokens) of token sequences, padded on the right."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long), 1
    return ids.to(device), mask.to(device)


@dataclass(frozen=True)
class Examples:
    """`ids` and `mask` (n, tokens), padded on the right: no pad is ever seen by a token before it. `labels`
    (n, tokens): the token that follows, where it is the target's or the end token. `lengths` (n,) of the prompts.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, template: Template, pairs: Sequence[tuple[Prompt, str]], device: torch.device) -> Examples:
        """Raises `UsageError` for a target that comes to nothing."""
        prompts = [template.prompt_ids(prompt) for prompt, _target in pairs]
        targets = [template.target_ids(str(prompt), target) for prompt, target in pairs]
        if not all(targets):
            raise UsageError(f"target {pairs[targets.index([])][1]!r} tokenises to nothing")
        ids, mask = padded_right([a + b for a, b in zip(prompts, targets, strict=True)], device)
        labels = torch.full(ids.shape, IGNORED)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            labels[row, len(prompt) - 1 : len(prompt) + len(target) - 1] = torch.tensor(target)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return cls(ids, mask, labels.to(device), lengths.to(device))

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: Tensor | Sequence[int]) -> Examples:
        chosen = torch.as_tensor(rows, device=self.ids.device)
        return Examples(self.ids[chosen], self.mask[chosen], self.labels[chosen], self.lengths[chosen])

    @property
    def prompts(self) -> tuple[Tensor, Tensor]:
        """Ids and mask of the prompts alone, padded on the right."""
        width = int(self.lengths.max())
        mask = (torch.arange(width, device=self.ids.device) < self.lengths[:, None]).long()
        return self.ids[:, :width], mask

    def losses(self, logits: Tensor) -> Tensor:
        """The mean cross-entropy (n,) over each row's target and end token, of logits (n, tokens, vocabulary)."""
        each = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), self.labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(self.labels)
        return each.sum(dim=1) / (self.labels != IGNORED).sum(dim=1)

    def learned(self, logits: Tensor) -> Tensor:
        """Whether (n,) each row's target is what greedy decoding gives, token for token."""
        right = (logits.argmax(dim=-1) == self.labels) | (self.labels == IGNORED)
        return right.all(dim=1)
