"""From keys to a routing decision: equations 10 to 12 of the paper.

    a^q = sigmoid(W_merge k_q)                                        (10), `activations_of`
    FFN^l uses expert Expert(a^q) if max(a^q) > theta, else W_down    (11), `choose`
    Expert(a^q) = argmax_i a_i^q                                      (12), `choose`

`patch.Patch.route` applies them to a batch of prompts. This file needs torch only; exported checkpoints contain a copy
of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scen_cli.model.keys import KeyConfig

BASE = -1  # in a choice: this row uses the base's own projection


@dataclass(frozen=True)
class Routing:
    """How prompts are routed.

    Attributes:
        theta: The activation threshold.
        cosine: Activations are the cosine of neuron and (whitened) key; otherwise sigmoid(w . k), as in the paper.
        key_config: How keys are read.
        own_activation_floor: Every active edit's own prompt gives its neuron at least this activation. If the full
            prompt reaches it, its segments do not count.
    """

    theta: float
    cosine: bool = False
    key_config: KeyConfig = field(default_factory=KeyConfig)
    own_activation_floor: float = 0.0


@dataclass(frozen=True)
class Whitening:
    """Whitens keys with statistics of the guard: directions in which all prompts vary count less.

    Attributes:
        mean: Mean guard key, (h,).
        axes: Principal axes of the guard keys, (r, h).
        scales: What is added to 1 to get the factor along each axis, (r,). Negative.
    """

    mean: Tensor
    axes: Tensor
    scales: Tensor

    def __call__(self, keys: Tensor) -> Tensor:
        """Whitened keys (..., h) of unit length; float32, or float64 if the keys are."""
        unit, keys = nn.functional.normalize, at_least_float32(keys)
        mean, axes, scales = (tensor.to(keys) for tensor in (self.mean, self.axes, self.scales))
        centred = unit(keys - mean, dim=-1)
        return unit(centred + ((centred @ axes.T) * scales) @ axes, dim=-1)


def activations_of(
    keys: Tensor, neurons: Tensor, cosine: bool, whitening: Whitening | None = None, biases: Tensor | None = None
) -> Tensor:
    """Equation 10: the activation of every neuron on every key.

    Args:
        keys: Keys as read from the base, (rows, h).
        neurons: W_merge as `normalize_neurons` returns it, (t, h).
        cosine: False: sigmoid(w . k), as in the paper. True: the cosine of neuron and whitened key.
        whitening: The guard's whitening, if the recipe has one.
        biases: Subtracted from the activations, (t,). A neuron among many similar prompts has a larger bias.

    Returns:
        Activations, (rows, t), float32.
    """
    activations = unbiased_activations(prepare_keys(keys, cosine, whitening), neurons, cosine)
    return activations if biases is None else activations - biases


def choose(activations: Tensor, theta: float) -> Tensor:
    """Equations 11 and 12: for each row the neuron with the largest activation if it exceeds theta, else `BASE`.

    Args:
        activations: Activations, (rows, t). NaN (from a damaged neuron) never wins.
        theta: The threshold.

    Returns:
        The choice, (rows,): an index into W_merge, or `BASE`.
    """
    if activations.shape[1] == 0:
        return torch.full(activations.shape[:1], BASE, device=activations.device)
    largest, index = activations.nan_to_num(nan=-torch.inf).max(dim=1)
    return torch.where(largest > theta, index, torch.full_like(index, BASE))


def prepare_keys(keys: Tensor, cosine: bool, whitening: Whitening | None = None) -> Tensor:
    """Keys (rows, h) as neurons see them: unchanged, or for the cosine whitened and of unit length."""
    keys = at_least_float32(keys)
    if not cosine:
        return keys
    return nn.functional.normalize(keys, dim=-1) if whitening is None else whitening(keys)


def normalize_neurons(neurons: Tensor, cosine: bool) -> Tensor:
    """Stored neurons (t, h) as they meet prepared keys, float32: for the cosine of unit length."""
    return nn.functional.normalize(neurons.float(), dim=-1) if cosine else neurons.float()


def unbiased_activations(prepared_keys: Tensor, neurons: Tensor, cosine: bool) -> Tensor:
    """Activations (rows, t) of normalised neurons (t, h) on prepared keys (rows, h), without biases."""
    product = prepared_keys @ neurons.to(prepared_keys.dtype).T
    return product if cosine else torch.sigmoid(product)


def max_per_prompt(activations: Tensor, rows: Tensor, count: int) -> Tensor:
    """The maximum over the segments of each prompt.

    Args:
        activations: Activations of prompts and segments, (n, t).
        rows: The prompt that each of them belongs to, (n,), from 0 to `count` - 1.
        count: The number of prompts.

    Returns:
        Activations, (count, t).
    """
    if len(activations) == count:  # no prompt has segments
        return activations
    out = torch.full((count, activations.shape[1]), -torch.inf, device=activations.device)
    index = rows[:, None].to(out.device).expand_as(activations)
    return out.scatter_reduce(0, index, activations, "amax")


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
