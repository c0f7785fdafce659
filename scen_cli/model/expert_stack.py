"""What an expert is, and how a batch of sequences runs through theirs.

A *full* expert is a matrix (d, h) in the projection's place, the paper's W_down^t. A *low-rank* one is the base's
own projection plus B A, in LoRA's names: `a` (r, h), `b` (d, r).
This file needs torch alone, and is copied as it is into exported checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scen_cli.model.routing import BASE


@dataclass(frozen=True)
class LowRank:
    """The projection's weight plus B A: `a` (r, h) and `b` (d, r), or many at once, (..., r, h) and (..., d, r)."""

    a: Tensor
    b: Tensor


Expert = Tensor | LowRank


def add_low_rank(hidden: Tensor, output: Tensor, expert: LowRank) -> Tensor:
    """The base's `output` (..., tokens, d) plus B A `hidden` (..., tokens, h), computed in float32."""
    delta = hidden.float() @ expert.a.mT @ expert.b.mT
    return (output.float() + delta).to(output.dtype)


def apply_full(weight: Tensor, projection: nn.Module, hidden: Tensor) -> Tensor:
    """`hidden` (..., tokens, h) through a full expert (..., d, h) in float32, with the base's bias if it has one."""
    weight, hidden_float = weight.to(hidden.device).float(), hidden.float()
    out = nn.functional.linear(hidden_float, weight) if weight.dim() == 2 else hidden_float @ weight.mT
    if isinstance(projection.bias, Tensor):
        out = out + projection.bias.float()
    return out.to(hidden.dtype)


class ExpertStack:
    """The experts of W_merge's rows. Low-rank ones are resident in two stacked tensors: row i's `ranks[i]` rows of A
    (sum of ranks, h) and of B (sum of ranks, d) begin at `starts[i]`. Full ones, of rank 0, are read as they are
    called."""

    def __init__(self, a: Tensor, b: Tensor, ranks: Tensor, full: Callable[[int], Tensor]) -> None:
        self.a, self.b, self.ranks, self.full = a, b, ranks.cpu(), full
        self.starts = self.ranks.cumsum(dim=0) - self.ranks

    def fetch(self, choice: Tensor) -> Tensor:
        """Have the experts of a choice ready; returns the choice to go by. (A subclass may read them late, and answer
        with the base where one cannot be read.)"""
        return choice

    def gather(self, choice: Tensor) -> LowRank:
        """The low-rank experts of a choice (n,), float32: (n, r, h) and (n, d, r) with the largest rank among them,
        and zeros beyond an expert's own, as for `BASE` and full ones."""
        called = choice.clamp(min=0)
        ranks = torch.where(choice == BASE, 0, self.ranks[called])
        place = torch.arange(int(ranks.max()))
        real = place < ranks[:, None]
        rows = torch.where(real, self.starts[called][:, None] + place, 0).to(self.a.device)
        beyond = ~real.to(self.a.device)[..., None]  # filled, not multiplied: what was never read may hold anything
        a, b = (one[rows].float().masked_fill(beyond, 0) for one in (self.a, self.b))
        return LowRank(a, b.mT)


class ActiveRoute:
    """A choice (n,) carried by sequences through the model: their experts, gathered once for all their tokens."""

    def __init__(self, experts: ExpertStack, choice: Tensor) -> None:
        self.experts, self.choice = experts, experts.fetch(choice.cpu())
        self._gathered: dict[int, _Gathered] = {}  # by rows of a batch: beams and returned sequences multiply them

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor | None:
        """What the projection gives each row of `hidden` (rows, tokens, h) by its expert; None: all are the base's.

        A batch that holds each sequence k times in a row is understood; any other number of rows is an error.
        """
        rows = hidden.shape[0]
        if rows not in self._gathered:
            if rows % len(self.choice):
                raise ValueError(f"{len(self.choice)} choices were given for a batch of {rows} rows")
            choice = self.choice.repeat_interleave(rows // len(self.choice))
            self._gathered[rows] = _Gathered(self.experts, choice, hidden.device)
        return self._gathered[rows].output(projection, hidden, output)


class _Gathered:
    """The experts of one batch, row by row."""

    def __init__(self, experts: ExpertStack, choice: Tensor, device: torch.device) -> None:
        self.experts = experts
        edited = choice != BASE
        self.any, self.all = bool(edited.any()), bool(edited.all())
        if not self.any:
            return
        is_full = edited & (experts.ranks[choice.clamp(min=0)] == 0)
        self.full = {index: (choice == index).to(device) for index in choice[is_full].unique().tolist()}
        self.any_low_rank = bool((edited & ~is_full).any())
        if self.any_low_rank:
            self.low_rank = experts.gather(choice)
        self.edited = edited.to(device)[:, None, None]

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor | None:
        if not self.any:
            return None
        # A row of the base's stays as it is to the bit: nothing is added to it, not even zero.
        swapped = add_low_rank(hidden, output, self.low_rank) if self.any_low_rank else output
        swapped = swapped if self.all else torch.where(self.edited, swapped, output)
        for index, rows in self.full.items():
            swapped = swapped.clone() if swapped is output else swapped
            swapped[rows] = apply_full(self.experts.full(index), projection, hidden[rows])
        return swapped
