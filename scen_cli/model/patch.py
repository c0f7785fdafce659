"""SCEN on a loaded model: keys, routing, and experts that stand in for one `down_proj`.

This file needs torch alone, and is copied as it is into exported checkpoints.

Routing is explicit. `route` decides once per sequence, at its last prompt token; the decision
(a `choice`: one expert index per row, or `BASE`) is then handed to every forward of that
sequence. Nothing is kept on a module between calls, and the base's weights are never touched:
a forward hook swaps the output of the rows that have an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BASE = -1  # in a choice: this row keeps the base's own down_proj


@dataclass(frozen=True)
class Route:
    """What `route` decided: `choice` (rows,) of expert indices or `BASE`; `activations` (rows, t)."""

    choice: Tensor
    activations: Tensor


def last_token(attention_mask: Tensor) -> Tensor:
    """Index (rows,) of each row's last real token, whatever side the padding is on."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask.bool() * positions).argmax(dim=1)


def positions_of(attention_mask: Tensor) -> Tensor:
    """Position ids (rows, tokens) that count real tokens only, so that padding changes nothing."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def activations_of(keys: Tensor, neurons: Tensor, normalise: bool) -> Tensor:
    """Activations (rows, t) of W_merge `neurons` (t, h) for keys (rows, h), in float32.

    The paper's: sigmoid(W_merge k), equation 10. With `normalise`, the cosine of key and neuron.
    """
    keys, neurons = keys.float(), neurons.float()
    if normalise:
        unit = nn.functional.normalize
        return unit(keys, dim=-1) @ unit(neurons, dim=-1).T
    return torch.sigmoid(keys @ neurons.T)


def choose(activations: Tensor, theta: float) -> Tensor:
    """Equations 11 and 12: the strongest neuron of each row if it passes theta, else `BASE`."""
    if activations.shape[1] == 0:
        return torch.full(activations.shape[:1], BASE, device=activations.device)
    strongest, index = activations.max(dim=1)
    return torch.where(strongest > theta, index, torch.full_like(index, BASE))


class _StopForward(Exception):
    """Ends a forward pass once the key has been read: later layers need not run."""


@torch.no_grad()
def read_keys(model: nn.Module, down_proj: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Keys (rows, h), float32: the input of `down_proj` at each row's last real token.

    Runs the layers up to the edited one and no further.
    """
    seen: list[Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0])
        raise _StopForward

    handle = down_proj.register_forward_pre_hook(stop)
    try:
        model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions_of(attention_mask),
            use_cache=False,
        )
    except _StopForward:
        pass
    finally:
        handle.remove()
    rows = torch.arange(len(input_ids), device=input_ids.device)
    return seen[0][rows, last_token(attention_mask)].float()


# The patch whose sequences are being computed in this thread or task, and their choice.
_current: ContextVar[tuple[Patch, Tensor] | None] = ContextVar("scen_current", default=None)


class Patch:
    """Experts and indexing neurons, attached to one down projection of a model.

    `neurons` is W_merge (t, h); `expert(i)` gives expert i as (d, h). Detach with `detach()`.
    """

    def __init__(
        self,
        down_proj: nn.Module,
        neurons: Tensor,
        expert: Callable[[int], Tensor],
        theta: float,
        normalise: bool = False,
    ) -> None:
        self.down_proj, self.neurons, self.expert = down_proj, neurons, expert
        self.theta, self.normalise = theta, normalise
        self._handle = down_proj.register_forward_hook(self._swap_rows)

    def detach(self) -> None:
        """Take the hook away: the model is the base again, bit for bit."""
        self._handle.remove()

    def route(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Route:
        """Decide for each row of a batch of prompts, at its last real token."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        keys = read_keys(model, self.down_proj, input_ids, mask)
        activations = activations_of(keys, self.neurons.to(keys.device), self.normalise)
        return Route(choose(activations, self.theta), activations)

    @contextmanager
    def using(self, choice: Tensor) -> Iterator[None]:
        """Forwards inside this block use `choice`, one entry per sequence.

        A batch that holds each sequence n times in a row (beams, returned sequences) is
        understood; any other number of rows is an error.
        """
        token = _current.set((self, choice))
        try:
            yield
        finally:
            _current.reset(token)

    def _swap_rows(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        current = _current.get()
        if current is None or current[0] is not self:
            return None
        choice = current[1]
        hidden = inputs[0]
        if hidden.shape[0] % len(choice):
            raise ValueError(f"{len(choice)} choices were given for a batch of {hidden.shape[0]} rows")
        rows = choice.repeat_interleave(hidden.shape[0] // len(choice))
        swapped = None
        for index in rows.unique().tolist():
            if index == BASE:
                continue
            if swapped is None:
                swapped = output.clone()
            of_this = (rows == index).to(hidden.device)
            swapped[of_this] = apply_expert(self.expert(index), module, hidden[of_this])
        return swapped


def apply_expert(expert: Tensor, down_proj: nn.Module, hidden: Tensor) -> Tensor:
    """`hidden` (..., h) through an expert (d, h) in float32, with the base's bias if it has one."""
    bias = down_proj.bias
    out = nn.functional.linear(hidden.float(), expert.to(hidden.device).float(), None if bias is None else bias.float())
    return out.to(hidden.dtype)
