"""Training texts: token ids of prompts with their targets, which tokens carry loss, and one optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.errors import UsageError
from scen_cli.model.keys import positions_of
from scen_cli.model.template import Prompt, Template

IGNORED = -100  # the label of a token without loss
TEXTS_PER_PASS = 64
T = TypeVar("T")


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def padded_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (rows, tokens) of token sequences, padded on the right."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long), 1
    return ids.to(device), mask.to(device)


def run_texts(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits (rows, tokens, vocabulary) of whole texts, without a cache. Without a mask, texts must be padded on the
    right: causal attention then never reaches a pad."""
    options = {} if mask is None else {"attention_mask": mask, "position_ids": positions_of(mask)}
    return model(input_ids=ids, use_cache=False, **options).logits


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimizer step on this loss alone."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@dataclass(frozen=True)
class Examples:
    """Texts of a prompt and its target, padded on the right.

    Attributes:
        ids, mask: Token ids and attention mask (n, tokens).
        labels: (n, tokens) the next token where that belongs to the target (end token included), else `IGNORED`.
        lengths: (n,) tokens of the prompts.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, template: Template, pairs: Sequence[tuple[Prompt, str]], device: torch.device) -> Examples:
        """Raises `UsageError` for a target without tokens."""
        prompts = [template.prompt_ids(prompt) for prompt, _target in pairs]
        targets = [template.target_ids(str(prompt), target) for prompt, target in pairs]
        if not all(targets):
            raise UsageError(f"target {pairs[targets.index([])][1]!r} has no tokens")
        ids, mask = padded_right([a + b for a, b in zip(prompts, targets, strict=True)], device)
        labels = torch.full(ids.shape, IGNORED)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            labels[row, len(prompt) - 1 : len(prompt) + len(target) - 1] = torch.tensor(target)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return cls(ids, mask, labels.to(device), lengths.to(device))

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: Sequence[int]) -> Examples:
        chosen = torch.tensor(rows, device=self.ids.device)
        return Examples(self.ids[chosen], self.mask[chosen], self.labels[chosen], self.lengths[chosen])

    @property
    def scored(self) -> Tensor:
        """Whether (n, tokens) a token carries loss."""
        return self.labels != IGNORED

    @property
    def prompts(self) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of the prompts alone, padded on the right."""
        width = int(self.lengths.max())
        mask = (torch.arange(width, device=self.ids.device) < self.lengths[:, None]).long()
        return self.ids[:, :width], mask

    def losses(self, logits: Tensor) -> Tensor:
        """The mean cross-entropy (n,) over each row's target and end token, of logits (n, tokens, vocabulary)."""
        each = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), self.labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(self.labels)
        return each.sum(dim=1) / self.scored.sum(dim=1)

    def learned(self, logits: Tensor) -> Tensor:
        """Whether (n,) greedy decoding gives each row's target, token for token."""
        return ((logits.argmax(dim=-1) == self.labels) | ~self.scored).all(dim=1)


def kl_from_base(base_log_probs: Tensor, logits: Tensor) -> Tensor:
    """KL divergence of logits (n, vocabulary) from the base's log-probabilities (n, vocabulary), mean over n."""
    after = logits.float().log_softmax(dim=-1)
    return nn.functional.kl_div(after, base_log_probs, log_target=True, reduction="batchmean")
