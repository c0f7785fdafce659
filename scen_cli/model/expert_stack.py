"""Experts, and how each row of a batch runs through its own expert.

A *full* expert is a matrix (d, h) that replaces the projection's weight: W_down^t of the paper. A *low-rank* expert is
the base's weight plus B A, with LoRA's names: `a` (r, h), `b` (d, r).
This file needs torch only; exported checkpoints contain a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from scen_cli.model.routing import BASE, Whitening
from scen_cli.model.subject_filter import SubjectFilter


@dataclass(frozen=True)
class LowRank:
    """The projection's weight plus B A: `a` (r, h) and `b` (d, r); or a batch of them, (..., r, h) and (..., d, r)."""

    a: Tensor
    b: Tensor


Expert = Tensor | LowRank


def add_low_rank(hidden: Tensor, output: Tensor, expert: LowRank) -> Tensor:
    """The base's `output` (..., tokens, d) plus B A applied to `hidden` (..., tokens, h). Computed in float32."""
    delta = hidden.float() @ expert.a.mT @ expert.b.mT
    return (output.float() + delta).to(output.dtype)


def apply_full(weight: Tensor, projection: nn.Module, hidden: Tensor) -> Tensor:
    """Apply a full expert (..., d, h) to `hidden` (..., tokens, h) in float32; adds the projection's bias if any."""
    weight, hidden_float = weight.to(hidden.device).float(), hidden.float()
    out = nn.functional.linear(hidden_float, weight) if weight.dim() == 2 else hidden_float @ weight.mT
    if isinstance(projection.bias, Tensor):
        out = out + projection.bias.float()
    return out.to(hidden.dtype)


class ExpertStack:
    """The experts of W_merge's rows.

    Low-rank experts stay in memory in two stacked tensors: `ranks[i]` rows from `starts[i]` on belong to row i of
    W_merge. Full experts have rank 0; `full` loads one when it is needed.

    Args:
        a: All A matrices, (sum of ranks, h).
        b: All B matrices, transposed, (sum of ranks, d).
        ranks: The rank of each expert, (t,).
        full: Returns the full expert (d, h) of a row.
    """

    def __init__(self, a: Tensor, b: Tensor, ranks: Tensor, full: Callable[[int], Tensor]) -> None:
        self.a, self.b, self.ranks, self.full = a, b, ranks.cpu(), full
        self.starts = self.ranks.cumsum(dim=0) - self.ranks

    def fetch(self, choice: Tensor) -> Tensor:
        """Load the experts of a choice (n,), and return the choice to use. A subclass may load experts only here, and
        choose the base where an expert cannot be read."""
        return choice

    def gather(self, choice: Tensor) -> LowRank:
        """The low-rank experts of a choice (n,), float32: (n, r, h) and (n, d, r), r being the largest rank among them.
        Zeros fill up smaller ranks, and stand for `BASE` and full experts."""
        index = choice.clamp(min=0)
        ranks = torch.where(choice == BASE, 0, self.ranks[index])
        offset = torch.arange(int(ranks.max()))
        used = offset < ranks[:, None]
        rows = torch.where(used, self.starts[index][:, None] + offset, 0).to(self.a.device)
        unused = ~used.to(self.a.device)[..., None]
        # Fill, do not multiply: memory of experts that were never loaded may hold NaN.
        a, b = (stacked[rows].float().masked_fill(unused, 0) for stacked in (self.a, self.b))
        return LowRank(a, b.mT)


class ActiveRoute:
    """A routing decision in use: the experts of a choice (n,), gathered once for all tokens of the sequences."""

    def __init__(self, experts: ExpertStack, choice: Tensor) -> None:
        self.experts, self.choice = experts, experts.fetch(choice.cpu())
        self._by_rows: dict[int, _BatchExperts] = {}  # by batch size: beams and returned sequences multiply the rows

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor | None:
        """The projection's output with experts.

        Args:
            projection: The module that the experts replace.
            hidden: Its input, (rows, tokens, h). The batch may hold each sequence k times in a row (beams).
            output: The base's output, (rows, tokens, d).

        Returns:
            The new output; None if all rows are the base's.

        Raises:
            ValueError: The batch size is not a multiple of the number of choices.
        """
        rows = hidden.shape[0]
        if rows not in self._by_rows:
            if rows % len(self.choice):
                raise ValueError(f"{len(self.choice)} choices were given for a batch of {rows} rows")
            choice = self.choice.repeat_interleave(rows // len(self.choice))
            self._by_rows[rows] = _BatchExperts(self.experts, choice, hidden.device)
        return self._by_rows[rows].output(projection, hidden, output)


class _BatchExperts:
    """The experts of one batch: one choice for each row."""

    def __init__(self, experts: ExpertStack, choice: Tensor, device: torch.device) -> None:
        self.experts = experts
        edited = choice != BASE
        self.any_edited, self.all_edited = bool(edited.any()), bool(edited.all())
        if not self.any_edited:
            return
        is_full = edited & (experts.ranks[choice.clamp(min=0)] == 0)
        self.full_rows = {expert: (choice == expert).to(device) for expert in choice[is_full].unique().tolist()}
        self.any_low_rank = bool((edited & ~is_full).any())
        if self.any_low_rank:
            self.low_rank = experts.gather(choice)
        self.edited = edited.to(device)[:, None, None]

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor | None:
        if not self.any_edited:
            return None
        new_output = add_low_rank(hidden, output, self.low_rank) if self.any_low_rank else output
        # Rows of the base keep their exact output: adding zero could change a bit.
        new_output = new_output if self.all_edited else torch.where(self.edited, new_output, output)
        for expert, rows in self.full_rows.items():
            new_output = new_output.clone() if new_output is output else new_output
            new_output[rows] = apply_full(self.experts.full(expert), projection, hidden[rows])
        return new_output


class Bank(Protocol):
    """What a patch routes to.

    Attributes:
        neurons: W_merge as `routing.normalize_neurons` returns it, (t, h).
        biases: Subtracted from the activations, (t,).
        whitening: The whitening of keys, if the recipe has one.
        subject_filter: The subject filter, if the recipe has one.
        experts: The expert of each row.
    """

    @property
    def neurons(self) -> Tensor: ...

    @property
    def biases(self) -> Tensor: ...

    @property
    def whitening(self) -> Whitening | None: ...

    @property
    def subject_filter(self) -> SubjectFilter | None: ...

    @property
    def experts(self) -> ExpertStack: ...
