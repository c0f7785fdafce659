"""SCEN on a loaded model: keys, routing, and experts that stand in for one projection, `down_proj` as a rule.

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
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

BASE = -1  # in a choice: this row keeps the base's own projection


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
    """Equations 11 and 12: the strongest neuron of each row if it passes theta, else `BASE`.
    A neuron that is not a number (a damaged one) is never the strongest."""
    if activations.shape[1] == 0:
        return torch.full(activations.shape[:1], BASE, device=activations.device)
    strongest, index = activations.nan_to_num(nan=-torch.inf).max(dim=1)
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
        if _reading.get() is seen:  # not a forward of another thread that passes by meanwhile
            seen.append(inputs[0])
            raise _StopForward

    token = _reading.set(seen)
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
        _reading.reset(token)
    rows = torch.arange(len(input_ids), device=input_ids.device)
    return seen[0][rows, last_token(attention_mask)].float()


# Where this thread's or task's `read_keys` collects, while it runs.
_reading: ContextVar[list[Tensor] | None] = ContextVar("scen_reading", default=None)

# The patch whose sequences are being computed in this thread or task, and their choice.
_current: ContextVar[tuple[Patch, Tensor] | None] = ContextVar("scen_current", default=None)


class Bank(Protocol):
    """What a patch routes to: W_merge `neurons` (t, h), and `expert(i)`, which gives expert i in the shape
    of the weight it stands in for: (d, h) for a down projection."""

    @property
    def neurons(self) -> Tensor: ...

    def expert(self, index: int) -> Tensor: ...


class Patch:
    """A bank of experts and indexing neurons on one layer of a model; `detach()` ends it.

    Experts stand in for `projection`. Keys are the input of the layer's `down_proj`, which is the same
    module unless experts were asked to sit elsewhere.
    """

    def __init__(
        self, projection: nn.Module, down_proj: nn.Module, bank: Bank, theta: float, normalise: bool = False
    ) -> None:
        self.down_proj, self.bank = down_proj, bank
        self.theta, self.normalise = theta, normalise
        self._handle = projection.register_forward_hook(self._swap_rows)
        self._users: set[object] = set()  # sequences under way; a set, since adding to one is atomic
        self._retired = False
        self._filled: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()  # cache -> its choice

    def detach(self) -> None:
        """Take the hook away: the model is the base again, bit for bit. Sequences that other threads
        are generating right now keep it to their end."""
        self._retired = True
        if not self._users:
            self._handle.remove()

    def route(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Route:
        """Decide for each row of a batch of prompts, at its last real token."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with self.using(torch.full((len(input_ids),), BASE)):
            keys = read_keys(model, self.down_proj, input_ids, mask)
        activations = activations_of(keys, self.bank.neurons.to(keys.device), self.normalise)
        return Route(choose(activations, self.theta), activations)

    @contextmanager
    def using(self, choice: Tensor) -> Iterator[None]:
        """Forwards inside this block use `choice`, one entry per sequence.

        A batch that holds each sequence n times in a row (beams, returned sequences) is
        understood; any other number of rows is an error.
        """
        with self.kept():
            token = _current.set((self, choice.cpu()))
            try:
                yield
            finally:
                _current.reset(token)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside this block the hook stays, even if the patch is detached meanwhile."""
        if self._retired and not self._users:
            raise RuntimeError("this patch was detached: its sequences would be the base's")
        user = object()
        self._users.add(user)
        try:
            yield
        finally:
            self._users.discard(user)
            if self._retired and not self._users:
                self._handle.remove()

    @property
    def in_use(self) -> bool:
        """Whether a choice of this patch is being carried right now."""
        current = _current.get()
        return current is not None and current[0] is self

    def generate(
        self,
        model: nn.Module,
        generate: Callable[..., Any],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        choice: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Decide (unless `choice` is given), then call `generate` with the choice carried along.

        A cache handed on from an earlier turn is used only if the same experts filled it: otherwise
        the tokens in it would speak for another expert, so they are computed anew.
        """
        if attention_mask is None:
            attention_mask = mask_of(model, input_ids)
        if choice is None:
            choice = self.route(model, input_ids, attention_mask).choice
        self.check(choice, len(input_ids))
        cache = options.get("past_key_values")
        if cache is not None and cache.get_seq_length() and self.choice_of(cache) != choice.tolist():
            options.pop("past_key_values")
        with self.using(choice):
            out = generate(input_ids=input_ids, attention_mask=attention_mask, **options)
        self.remember(getattr(out, "past_key_values", None), choice)
        self.remember(options.get("past_key_values"), choice)
        return out

    def check(self, choice: Tensor, rows: int) -> None:
        """Raise `ValueError` unless there is one choice for each row, each `BASE` or a row of W_merge."""
        known = len(self.bank.neurons)
        if len(choice) != rows or not all(BASE <= index < known for index in choice.tolist()):
            raise ValueError(f"{rows} rows need {rows} choices from -1 to {known - 1}, not {choice.tolist()}")

    def remember(self, cache: Any, choice: Tensor) -> None:
        """Note which experts filled a KV cache (None is no cache)."""
        if cache is not None:
            self._filled[cache] = choice.tolist()

    def choice_of(self, cache: Any) -> list[int] | None:
        """The choice a KV cache was filled with, if this patch filled it."""
        return self._filled.get(cache)

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
            swapped[of_this] = apply_expert(self.bank.expert(index), module, hidden[of_this])
        return swapped


def mask_of(model: Any, input_ids: Tensor) -> Tensor:
    """The attention mask that transformers would infer: pads are masked if the pad token is its own."""
    pad, end = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    if pad is None or pad in ends:
        return torch.ones_like(input_ids)
    return (input_ids != pad).long()


def apply_expert(expert: Tensor, projection: nn.Module, hidden: Tensor) -> Tensor:
    """`hidden` (..., h) through an expert (d, h) in float32, with the base's bias if it has one."""
    out = nn.functional.linear(hidden.float(), expert.to(hidden.device).float())
    if isinstance(projection.bias, Tensor):
        out = out + projection.bias.float()
    return out.to(hidden.dtype)
