"""SCEN on a loaded model: routing, and experts that stand in for one projection, `down_proj` as a rule.

This file needs torch alone, and is copied as it is into exported checkpoints.

Routing is explicit. It is decided once per sequence, at its last prompt token: by `route`, or inside the first
forward where that holds the whole prompt. The decision (a `choice`: one expert index per row, or `BASE`) is then
carried by every forward of that sequence. Nothing is kept on a module between calls, and the base's weights are
never touched: a forward hook swaps the output of the rows that have an expert.
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

from scen_cli.model.expert_stack import ActiveRoute, ExpertStack
from scen_cli.model.keys import pooled, read_keys, real_tokens, with_segments
from scen_cli.model.routing import BASE, Routing, Whitening, activations_of, choose, largest
from scen_cli.model.subject_filter import BLOCKED, SubjectFilter

SURE = 1e-4  # what rounding may take from the activation of an edit's own prompt


@dataclass(frozen=True)
class Route:
    """What `route` decided: `choice` (rows,) of expert indices or `BASE`; `activations` (rows, t)."""

    choice: Tensor
    activations: Tensor


class DeferredRoute:
    """Prompts whose experts are to be found inside the forward that computes them."""

    def __init__(self, patch: Patch, model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
        self._patch, self._model, self._ids, self._mask = patch, model, input_ids, attention_mask
        self._carried: ActiveRoute | None = None

    @property
    def choice(self) -> Tensor:
        if self._carried is None:
            raise RuntimeError("no forward has run on these prompts: nothing is decided")
        return self._carried.choice

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor | None:
        if self._carried is None:
            self._carried = ActiveRoute(self._patch.bank.experts, self._decide(hidden).choice)
        return self._carried.output(projection, hidden, output)

    def _decide(self, hidden: Tensor) -> Route:
        """`hidden` (rows, tokens, h) holds the keys if it is the whole prompts' (each k times in a row for beams); if
        it is a piece of them, or more than them, they are read in a pass of their own."""
        rows, tokens = self._ids.shape
        if hidden.shape[1] != tokens or hidden.shape[0] % rows or self._patch.keys_elsewhere:
            return self._patch.route(self._model, self._ids, self._mask)
        keys = pooled(hidden[:: hidden.shape[0] // rows], self._mask, self._patch.routing.key_config.pooling)
        return self._patch.route(self._model, self._ids, self._mask, keys)


# The patch whose sequences are being computed in this thread or task, and their choice.
_current: ContextVar[tuple[Patch, ActiveRoute | DeferredRoute] | None] = ContextVar("scen_current", default=None)


class Bank(Protocol):
    """What a patch routes to: W_merge, its `neurons` (t, h) as `routing.ready` gives them, and their `biases` (t,); the
    `whitening` of keys and the `subject_filter` at prompts, each if there is one; the `experts` of the rows."""

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


class Patch:
    """A bank of experts and indexing neurons on one layer of a model; `detach()` ends it.

    Experts stand in for `projection`. Keys are the input of the layer's `down_proj`, which is the same
    module unless experts were asked to sit elsewhere.
    """

    def __init__(self, projection: nn.Module, down_proj: nn.Module, bank: Bank, routing: Routing) -> None:
        self.down_proj, self.bank, self.routing = down_proj, bank, routing
        self.keys_elsewhere = projection is not down_proj
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

    def route(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, keys: Tensor | None = None
    ) -> Route:
        """Decide for each row of a batch of prompts: its activations are the largest of its parts', unless the whole
        of it calls an edit as surely as edits' own prompts do. `keys` (rows, h) of the whole rows, if they are known.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        key_config = self.routing.key_config
        with self.using(torch.full((len(input_ids),), BASE)):
            if keys is None:
                keys = read_keys(model, self.down_proj, input_ids, mask, key_config.pooling)
            keys, rows = with_segments(keys, model, self.down_proj, input_ids, mask, key_config)
        neurons, biases = self.bank.neurons.to(keys.device), self.bank.biases.to(keys.device)
        activations = activations_of(keys, neurons, self.routing.cosine, self.bank.whitening, biases)
        whole, activations = activations[: len(input_ids)], largest(activations, rows, len(input_ids))
        if self.bank.subject_filter is not None:
            blocked = self.bank.subject_filter.blocked(real_tokens(input_ids, mask), keys.device)
            whole, activations = (found.masked_fill(blocked, BLOCKED) for found in (whole, activations))
        calls = choose(whole, max(self.routing.theta, self.routing.own_activation_floor - SURE)) != BASE
        activations = torch.where(calls[:, None], whole, activations)
        return Route(choose(activations, self.routing.theta), activations)

    @contextmanager
    def using(self, choice: Tensor) -> Iterator[ActiveRoute]:
        """Forwards inside this block use `choice`, one entry per sequence.

        A batch that holds each sequence n times in a row (beams, returned sequences) is
        understood; any other number of rows is an error.
        """
        carried = ActiveRoute(self.bank.experts, choice)
        with self._carrying(carried):
            yield carried

    @contextmanager
    def deciding(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Iterator[DeferredRoute]:
        """Forwards inside this block are those of these prompts: the first of them decides, and yields the `choice`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        undecided = DeferredRoute(self, model, input_ids, mask)
        with self._carrying(undecided):
            yield undecided

    @contextmanager
    def _carrying(self, carried: ActiveRoute | DeferredRoute) -> Iterator[None]:
        with self.kept():
            token = _current.set((self, carried))
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
    ) -> tuple[Any, Tensor]:
        """Call `generate` with a choice carried along, one that is decided on the way unless it is given; returns what
        it gave, and the choice.

        A cache handed on from an earlier turn is used only if the same experts filled it: otherwise
        the tokens in it would speak for another expert, so they are computed anew.
        """
        if attention_mask is None:
            attention_mask = mask_of(model, input_ids)
        cache = options.get("past_key_values")
        filled = cache is not None and cache.get_seq_length() > 0
        if choice is None and (filled or options.get("position_ids") is not None):
            # Whether a cache can be used must be known before anything runs; and keys are read at positions of ours.
            choice = self.route(model, input_ids, attention_mask).choice
        if choice is None:
            with self.deciding(model, input_ids, attention_mask) as undecided:
                out = generate(input_ids=input_ids, attention_mask=attention_mask, **options)
            choice = undecided.choice
        else:
            self.check(choice, len(input_ids))
            if filled and self.choice_of(cache) != choice.tolist():
                options.pop("past_key_values")
            with self.using(choice) as carried:
                out = generate(input_ids=input_ids, attention_mask=attention_mask, **options)
            choice = carried.choice
        self.remember(getattr(out, "past_key_values", None), choice)
        self.remember(options.get("past_key_values"), choice)
        return out, choice

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
        return current[1].output(module, inputs[0], output)


def mask_of(model: Any, input_ids: Tensor) -> Tensor:
    """The attention mask that transformers would infer: pads are masked if the pad token is its own."""
    pad, end = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    if pad is None or pad in ends:
        return torch.ones_like(input_ids)
    return (input_ids != pad).long()
