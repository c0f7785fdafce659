"""The parameters of experts in training: many experts side by side, full or low-rank, in one batched product.

Low-rank experts start as in EVA (Paischer et al. 2024): A holds the directions in which the projection's inputs vary
most, B is zero. Both are trained in units of the base's own activations: a step of B changes the output by a share of
the residual stream's size, a step of A by a share of the input's size. One learning rate then fits bases of all widths.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scen_cli.experts.prefix_cache import Prefix
from scen_cli.model.expert_stack import LowRank, add_low_rank, apply_full
from scen_cli.model.ffn import EditedLayer

A_RATE = 7.5  # learning rate of A divided by that of B (benchmarks/LOG.md)


class FullExperts:
    """Copies of the base's W_down, (tasks, d, h). Stored as float32, so rounding does nothing.

    Attributes (those of `LowRankExperts` too):
        all_logits: The model computes logits at all positions, as in the paper's code. Full experts need it: the first
            Adam steps follow the signs of gradients, so a rounding difference would show.
        rounded: `output` uses the experts as they will be stored.
        parameters: Tensors (tasks, ...) that the optimizer updates.
        rates: The learning rate of each of them.
    """

    all_logits = True
    rounded = True

    def __init__(self, edited: EditedLayer, tasks: int, lr: float) -> None:
        self.parameters = [edited.base_weight().expand(tasks, -1, -1).clone()]
        self.rates = [lr]

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor:
        """The projection's output with experts, as in `ActiveRoute.output`. Rows are grouped by task."""
        [weights] = self.parameters
        if len(weights) == 1:
            return apply_full(weights[0], projection, hidden)
        return apply_full(weights, projection, hidden.reshape(len(weights), -1, hidden.shape[-1])).reshape(output.shape)

    def expert(self, position: int) -> Tensor:
        """The expert at a position of the batch, as it will be stored."""
        return self.parameters[0][position].detach().clone()

    def select(self, kept: Tensor) -> None:
        """Keep the experts at these positions. `parameters` are replaced by the caller."""


class LowRankExperts:
    """A (tasks, r, h) and B (tasks, d, r), each divided by its scale (tasks, 1, 1).

    Args:
        prefix: The recorded prefix of the batch.
        real: True for tokens that are not padding, (tasks, samples, tokens).
        width: d.
        rank: r.
        lr: The learning rate of B.
    """

    all_logits = False
    rounded = False

    def __init__(self, prefix: Prefix, real: Tensor, width: int, rank: int, lr: float) -> None:
        real = real.clone()
        # Ignore the first token of a sequence: bases keep activations of another size there.
        real[:, :, 0] &= real.sum(dim=2) == 1
        real = real.flatten(1).to(prefix.inputs.device)
        inputs = prefix.inputs.float().reshape(*real.shape, -1) * real[..., None]
        residual = prefix.residual.float().reshape(*real.shape, -1)
        axes = _main_axes(inputs, rank)
        input_size = _median((inputs @ axes[:, :1].mT)[..., 0].abs(), real)  # along the first axis
        output_size = _median(residual.pow(2).mean(dim=-1).sqrt(), real)
        self._scales = [input_size / _median(inputs.abs().sum(dim=-1), real), output_size / input_size]
        a, b = axes / self._scales[0], torch.zeros(len(real), width, rank, device=axes.device)
        self.parameters, self.rates = [a, b], [A_RATE * lr, lr]

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor:
        a, b = (tensor * scale for tensor, scale in zip(self.parameters, self._scales, strict=True))
        a, b = (_rounded(a), _rounded(b)) if self.rounded else (a, b)
        hidden, base_output = (tensor.reshape(len(a), -1, tensor.shape[-1]) for tensor in (hidden, output))
        return add_low_rank(hidden, base_output, LowRank(a, b)).reshape(output.shape)

    def expert(self, position: int) -> LowRank:
        pairs = zip(self.parameters, self._scales, strict=True)
        return LowRank(*(_rounded(tensor[position].detach() * scale[position]) for tensor, scale in pairs))

    def select(self, kept: Tensor) -> None:
        self._scales = [scale[kept] for scale in self._scales]


ExpertParameters = FullExperts | LowRankExperts


def _main_axes(inputs: Tensor, rank: int) -> Tensor:
    """The first right singular vectors (tasks, r, h) of inputs (tasks, tokens, h), from the Gram matrix of the tokens.
    Zeros fill up if there are fewer tokens than ranks."""
    gram = (inputs @ inputs.mT).double()
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(-1)[:, :rank], vectors.flip(-1)[..., :rank]
    axes = vectors.mT.float() @ inputs
    nonzero = squares > 1e-6 * squares[:, :1]
    axes = nn.functional.normalize(axes, dim=-1) * nonzero[..., None]
    return nn.functional.pad(axes, (0, 0, 0, rank - axes.shape[1]))


def _median(values: Tensor, real: Tensor) -> Tensor:
    """The median (tasks, 1, 1) of the `real` entries of `values` (tasks, tokens)."""
    return values.masked_fill(~real, torch.nan).nanmedian(dim=1).values[:, None, None].clamp(min=1e-6)


def _rounded(tensor: Tensor) -> Tensor:
    """The tensor rounded to float16; the gradient ignores the rounding."""
    return tensor + (tensor.half().float() - tensor).detach()
