"""Experts in training: many side by side, full or low-rank, in one batched product per step.

Low-rank ones begin as EVA does (Paischer et al. 2024): A at the directions in which what enters the projection
varies most, B at zero. Both are trained in units of the base's own: a step of B moves the output by so much of the
residual stream's size, a step of A what it reads by so much of its own. So one rate fits bases of all widths.
Where it is decided whether they have learned, they run as they will be stored, rounded to float16.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from scen_cli.experts.prefix_cache import Prefix
from scen_cli.model.expert_stack import Expert, LowRank, add_low_rank, apply_full
from scen_cli.model.ffn import EditedLayer

A_RATE = 7.5  # A's rate over B's (benchmarks/LOG.md)


class ExpertParameters(Protocol):
    """`parameters`, each (lessons, ...), with their rates; `output` of the projection; the experts as they stand.

    `literal`: Adam's first steps on them follow the signs of gradients, the least ones too, so that rounding shows: the
    model runs exactly as the paper's does, its output head on all tokens.
    """

    literal: bool
    rounded: bool  # whether `output` is that of what will be stored
    parameters: list[Tensor]
    rates: list[float]

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor: ...

    def expert(self, lesson: int) -> Expert: ...

    def keep(self, lessons: Tensor) -> None: ...


class FullExperts:
    """Copies of the base's W_down, (lessons, d, h)."""

    literal = True
    rounded = True  # there is no difference

    def __init__(self, edited: EditedLayer, lessons: int, lr: float) -> None:
        self.parameters = [edited.base_weight().expand(lessons, -1, -1).clone()]
        self.rates = [lr]

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor:
        [weights] = self.parameters
        if len(weights) == 1:
            return apply_full(weights[0], projection, hidden)
        return apply_full(weights, projection, hidden.reshape(len(weights), -1, hidden.shape[-1])).reshape(output.shape)

    def expert(self, lesson: int) -> Tensor:
        return self.parameters[0][lesson].detach().clone()

    def keep(self, lessons: Tensor) -> None:
        pass


class LowRankExperts:
    """A (lessons, r, h) and B (lessons, d, r), each over its `scale` (lessons, 1, 1)."""

    literal = False
    rounded = False

    def __init__(self, prefix: Prefix, real: Tensor, width: int, rank: int, lr: float) -> None:
        """`real` (lessons, samples, tokens): which tokens count. The first of a sequence does not: what a base keeps
        there is of another size."""
        real = real.clone()
        real[:, :, 0] &= real.sum(dim=2) == 1
        real = real.flatten(1).to(prefix.inputs.device)
        inputs = prefix.inputs.float().reshape(*real.shape, -1) * real[..., None]
        residual = prefix.residual.float().reshape(*real.shape, -1)
        axes = _main_axes(inputs, rank)
        reads = _median((inputs @ axes[:, :1].mT)[..., 0].abs(), real)  # along the first axis
        writes = _median(residual.pow(2).mean(dim=-1).sqrt(), real)
        self.scales = [reads / _median(inputs.abs().sum(dim=-1), real), writes / reads]
        a, b = axes / self.scales[0], torch.zeros(len(real), width, rank, device=axes.device)
        self.parameters, self.rates = [a, b], [A_RATE * lr, lr]

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor:
        a, b = (one * scale for one, scale in zip(self.parameters, self.scales, strict=True))
        a, b = (_rounded(a), _rounded(b)) if self.rounded else (a, b)
        lessons = len(a)
        hidden, out = (tensor.reshape(lessons, -1, tensor.shape[-1]) for tensor in (hidden, output))
        return add_low_rank(hidden, out, LowRank(a, b)).reshape(output.shape)

    def expert(self, lesson: int) -> LowRank:
        pairs = zip(self.parameters, self.scales, strict=True)
        return LowRank(*(_rounded(one[lesson].detach() * scale[lesson]) for one, scale in pairs))

    def keep(self, lessons: Tensor) -> None:
        self.scales = [scale[lessons] for scale in self.scales]


def _main_axes(inputs: Tensor, rank: int) -> Tensor:
    """The first right singular vectors (lessons, r, h) of inputs (lessons, tokens, h), through their products; zeros
    where there are fewer tokens."""
    products = (inputs @ inputs.mT).double()
    squares, vectors = torch.linalg.eigh(products)
    squares, vectors = squares.flip(-1)[:, :rank], vectors.flip(-1)[..., :rank]
    axes = vectors.mT.float() @ inputs
    there = squares > 1e-6 * squares[:, :1]
    axes = nn.functional.normalize(axes, dim=-1) * there[..., None]
    return nn.functional.pad(axes, (0, 0, 0, rank - axes.shape[1]))


def _median(values: Tensor, real: Tensor) -> Tensor:
    """The median (lessons, 1, 1) of those of `values` (lessons, tokens) that are `real`."""
    return values.masked_fill(~real, torch.nan).nanmedian(dim=1).values[:, None, None].clamp(min=1e-6)


def _rounded(tensor: Tensor) -> Tensor:
    """As float16 will keep it; gradients pass as if it were not."""
    return tensor + (tensor.half().float() - tensor).detach()
