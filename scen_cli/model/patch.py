"""Route prompts and run experts on a loaded model. `Patch.route` decides, a forward hook swaps the output.

The decision is taken once per sequence, at its last prompt token: by `route`, or inside the first forward pass if that
holds the whole prompt (`deciding`). The decision is a *choice*: one row of W_merge, or `BASE`, for each sequence. All
later forward passes of the sequence use it. No module keeps state between calls, and the base's weights never change.
The hook replaces the output of one projection (`down_proj` as a rule) for the rows that have an expert.

This file needs torch only; exported checkpoints contain a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from scen_cli.model.expert_stack import ActiveRoute, Bank
from scen_cli.model.keys import mask_of, must_stand_alone, padded, pool_keys, read_keys, read_segments, real_tokens
from scen_cli.model.routing import BASE, Routing, activations_of, choose, max_per_prompt
from scen_cli.model.subject_filter import BLOCKED, SubjectFilter

ROUNDING = 1e-4  # how far rounding may lower the activation of an edit's own prompt


@dataclass(frozen=True)
class Route:
    """The result of `Patch.route`.

    Attributes:
        choice: A row of W_merge, or `BASE`, for each prompt, (rows,).
        activations: The activations that the choice follows from, (rows, t).
    """

    choice: Tensor
    activations: Tensor


class DeferredRoute:
    """Prompts that are routed inside their first forward pass: its input of `down_proj` holds the keys."""

    def __init__(self, patch: Patch, model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> None:
        self._patch, self._model, self._ids, self._mask = patch, model, input_ids, attention_mask
        self._route: ActiveRoute | None = None

    @property
    def choice(self) -> Tensor:
        if self._route is None:
            raise RuntimeError("no forward has run on these prompts: nothing is decided")
        return self._route.choice

    def output(self, projection: nn.Module, hidden: Tensor, output: Tensor) -> Tensor | None:
        """As `ActiveRoute.output`. The first call decides."""
        if self._route is None:
            self._route = ActiveRoute(self._patch.bank.experts, self._decide(hidden).choice)
        return self._route.output(projection, hidden, output)

    def _decide(self, hidden: Tensor) -> Route:
        """Route with the keys in `hidden` (rows, tokens, h), which may hold each prompt k times in a row (beams)."""
        rows, tokens = self._ids.shape
        if hidden.shape[1] != tokens or hidden.shape[0] % rows or self._patch.keys_elsewhere:
            # This pass holds a chunk of the prompts, or more than them: read the keys in a separate pass.
            return self._patch.route(self._model, self._ids, self._mask)
        if must_stand_alone(self._model, tokens) and (rows > 1 or not bool(self._mask.all())):
            # Here a prompt has the position embeddings of the longest row, or of its own answer.
            return self._patch.route(self._model, self._ids, self._mask)
        one_per_prompt = hidden[:: hidden.shape[0] // rows]
        keys = pool_keys(one_per_prompt, self._mask, self._patch.routing.key_config.pooling)
        return self._patch.route(self._model, self._ids, self._mask, keys)


# The patch whose sequences this thread or task computes, and their decision.
_current: ContextVar[tuple[Patch, ActiveRoute | DeferredRoute] | None] = ContextVar("scen_current", default=None)


class Patch:
    """Indexing neurons and experts on one layer of a model. `detach` removes it.

    Args:
        projection: The module that experts replace.
        down_proj: The module whose input is the key: `projection` itself, unless experts sit elsewhere.
        bank: Neurons and experts.
        routing: How prompts are routed.
    """

    def __init__(self, projection: nn.Module, down_proj: nn.Module, bank: Bank, routing: Routing) -> None:
        self.down_proj, self.bank, self.routing = down_proj, bank, routing
        self.keys_elsewhere = projection is not down_proj
        self._handle = projection.register_forward_hook(self._swap_rows)
        self._users: set[object] = set()  # one entry per running sequence batch; a set, because `add` is atomic
        self._detached = False
        self._choice_of_cache: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()

    def detach(self) -> None:
        """Remove the hook: the model is bit for bit the base again. Sequences that other threads generate at this
        moment keep the hook until they end."""
        self._detached = True
        if not self._users:
            self._handle.remove()

    def route(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, keys: Tensor | None = None
    ) -> Route:
        """Route prompts: equations 10 to 12 of the paper, with this project's additions.

        The activation of a neuron is the maximum over the prompt and its segments. Segments do not count if the full
        prompt scores at least `own_activation_floor`: then it is an edit's own prompt.

        Args:
            model: The model that the patch sits on.
            input_ids: Token ids, (rows, tokens); padding may be on either side.
            attention_mask: (rows, tokens); None: no padding.
            keys: Keys of the full prompts, (rows, h), if they are known; otherwise they are read here.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        theta, subjects = self.routing.theta, self.bank.subject_filter
        # Read keys with the base alone: an expert must not change the keys that choose it. One entry for all rows,
        # because a batch of segments has more rows than there are prompts.
        with self.using(torch.tensor([BASE])):
            if self.routing.key_config.mask and subjects is not None:
                full, activations = self._activations_by_subject(model, input_ids, mask, keys, subjects)
            else:
                full, activations = self._activations(model, input_ids, mask, keys)
                if subjects is not None:  # an edit whose subject the prompt does not name cannot win
                    blocked = subjects.blocked(real_tokens(input_ids, mask), full.device)
                    full, activations = full.masked_fill(blocked, BLOCKED), activations.masked_fill(blocked, BLOCKED)

        # An edit's own prompt may end with a sentence that is another edit's prompt. It must route to its own edit, so
        # where the full prompt already scores as an own prompt does, the segments do not count.
        is_own_prompt = choose(full, max(theta, self.routing.own_activation_floor - ROUNDING)) != BASE
        activations = torch.where(is_own_prompt[:, None], full, activations)

        # Equations 11 and 12.
        return Route(choose(activations, theta), activations)

    def _activations(
        self, model: nn.Module, input_ids: Tensor, mask: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Equation 10: activations (rows, t) on the full prompts, and their maximum over the prompt's segments."""
        keys, rows = read_segments(model, self.down_proj, input_ids, mask, self.routing.key_config, keys)
        activations = self._activations_on(keys)
        return activations[: len(input_ids)], max_per_prompt(activations, rows, len(input_ids))

    def _activations_by_subject(
        self, model: nn.Module, input_ids: Tensor, mask: Tensor, keys: Tensor | None, subjects: SubjectFilter
    ) -> tuple[Tensor, Tensor]:
        """As `_activations`. The neurons of edits with a subject see the prompt with that subject masked; if the prompt
        does not name it, they are blocked."""
        tokens, key_config = real_tokens(input_ids, mask), self.routing.key_config
        full = torch.full((len(tokens), len(self.bank.neurons)), BLOCKED, device=input_ids.device)
        largest = full.clone()
        if not subjects.all_have_subjects:
            plain = self._activations(model, input_ids, mask, keys)
            has_subject = subjects.with_subject(full.device)
            full, largest = (values.to(full.device).masked_fill(has_subject, BLOCKED) for values in plain)
        masked = [
            (prompt, subject.rows, number, segment)
            for prompt, sequence in enumerate(tokens)
            for subject in subjects.named(sequence)
            for number, segment in enumerate(key_config.masked_segments_of(sequence, subject.spans))
        ]
        if not masked:
            return full, largest
        ids, ids_mask = padded([segment for *_, segment in masked], 0)
        device = input_ids.device
        read = read_keys(model, self.down_proj, ids.to(device), ids_mask.to(device), key_config.pooling)
        for (prompt, rows, number, _segment), activations in zip(masked, self._activations_on(read), strict=True):
            named = activations[rows].to(full.device)
            largest[prompt, rows] = torch.maximum(largest[prompt, rows], named)
            if number == 0:  # the full prompt
                full[prompt, rows] = torch.maximum(full[prompt, rows], named)
        return full, largest

    def _activations_on(self, keys: Tensor) -> Tensor:
        """The activations (n, t) of all neurons on keys (n, h)."""
        neurons, biases = self.bank.neurons.to(keys.device), self.bank.biases.to(keys.device)
        return activations_of(keys, neurons, self.routing.cosine, self.bank.whitening, biases)

    @contextmanager
    def using(self, choice: Tensor) -> Iterator[ActiveRoute]:
        """Forward passes inside this block use `choice`, one entry per sequence. A batch may hold each sequence k times
        in a row (beams, returned sequences); any other number of rows raises `ValueError`."""
        route = ActiveRoute(self.bank.experts, choice)
        with self._activate(route):
            yield route

    @contextmanager
    def deciding(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Iterator[DeferredRoute]:
        """Forward passes inside this block belong to these prompts. The first pass decides; the yielded object then has
        the `choice`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        route = DeferredRoute(self, model, input_ids, mask)
        with self._activate(route):
            yield route

    @contextmanager
    def _activate(self, route: ActiveRoute | DeferredRoute) -> Iterator[None]:
        with self.kept():
            token = _current.set((self, route))
            try:
                yield
            finally:
                _current.reset(token)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside this block the hook stays, even if another thread detaches the patch.

        Raises:
            RuntimeError: The patch is detached already.
        """
        if self._detached and not self._users:
            raise RuntimeError("this patch is detached: its sequences would be computed by the base")
        user = object()
        self._users.add(user)
        try:
            yield
        finally:
            self._users.discard(user)
            if self._detached and not self._users:
                self._handle.remove()

    @property
    def in_use(self) -> bool:
        """Whether this thread or task computes with a decision of this patch."""
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
        """Call `generate` with a choice in use.

        A KV cache in `options` (`past_key_values`) is used only if the same experts filled it. Otherwise its tokens
        are recomputed.

        Args:
            model: The model that the patch sits on.
            generate: Its `generate` method.
            input_ids: Prompts, (rows, tokens).
            attention_mask: (rows, tokens); None: as `mask_of` infers it.
            choice: The choice, (rows,); None: route the prompts.
            **options: Passed on to `generate`.

        Returns:
            The result of `generate`, and the choice (rows,).
        """
        if attention_mask is None:
            attention_mask = mask_of(model, input_ids)
        cache = options.get("past_key_values")
        filled = cache is not None and cache.get_seq_length() > 0
        if choice is None and (filled or options.get("position_ids") is not None):
            # Route before the first pass: it is unknown whether the cache can be used, or `position_ids` differ from
            # those that keys are read at.
            choice = self.route(model, input_ids, attention_mask).choice
        if choice is None:
            with self.deciding(model, input_ids, attention_mask) as deferred:
                out = generate(input_ids=input_ids, attention_mask=attention_mask, **options)
            choice = deferred.choice
        else:
            self.check(choice, len(input_ids))
            if filled and self.choice_of(cache) != choice.tolist():
                options.pop("past_key_values")
            with self.using(choice) as route:
                out = generate(input_ids=input_ids, attention_mask=attention_mask, **options)
            choice = route.choice
        self.remember(getattr(out, "past_key_values", None), choice)
        self.remember(options.get("past_key_values"), choice)
        return out, choice

    def check(self, choice: Tensor, rows: int) -> None:
        """Raise `ValueError` unless the choice has one entry per row, each `BASE` or a row of W_merge."""
        neurons = len(self.bank.neurons)
        if len(choice) != rows or not all(BASE <= index < neurons for index in choice.tolist()):
            raise ValueError(f"{rows} rows need {rows} choices from -1 to {neurons - 1}, not {choice.tolist()}")

    def remember(self, cache: Any, choice: Tensor) -> None:
        """Record the choice that filled a KV cache. None (no cache) is ignored."""
        if cache is not None:
            self._choice_of_cache[cache] = choice.tolist()

    def choice_of(self, cache: Any) -> list[int] | None:
        """The choice that filled a KV cache; None if this patch did not fill it."""
        return self._choice_of_cache.get(cache)

    def _swap_rows(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        """The forward hook. None leaves the output as it is."""
        current = _current.get()
        if current is None or current[0] is not self:
            return None
        return current[1].output(module, inputs[0], output)
