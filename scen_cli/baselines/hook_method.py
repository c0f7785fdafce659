"""`HookMethod`: methods that change outputs of modules by forward hooks, and leave the base's weights alone. Also the
blocks in which hooks record or move what modules compute.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.method import Method, Settings
from scen_cli.model.expert_stack import LowRank, add_low_rank
from scen_cli.model.ffn import EditedLayer


def block_of(layer: EditedLayer) -> nn.Module:
    """The decoder layer that holds an edited layer's projections."""
    return layer.layers[layer.index]


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside this block modules have these forward hooks (with keyword arguments). Hooks from outside act first."""
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(*modules: nn.Module) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """Record the input and output of modules; the forward pass that ran last counts."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        seen[module] = args[0] if args else options["hidden_states"], _hidden(output)

    with hooked(dict.fromkeys(modules, record)):
        yield seen


@contextmanager
def low_rank_added(updates: Mapping[nn.Module, LowRank]) -> Iterator[None]:
    """Inside this block each projection has B A added to its weight."""

    def add(module: nn.Module, args: tuple[Tensor, ...], _options: dict[str, Any], output: Tensor) -> Tensor:
        return add_low_rank(args[0], output, updates[module])

    with hooked(dict.fromkeys(updates, add)):
        yield


@contextmanager
def moved(block: nn.Module, position: Tensor, move: Tensor) -> Iterator[None]:
    """Inside this block a decoder layer's output is moved by `move` (rows, d) at one token `position` (rows,)."""

    def add(_module: nn.Module, _args: Any, _options: Any, output: Any) -> Any:
        hidden = _hidden(output)
        rows = torch.arange(len(hidden), device=hidden.device)
        added = torch.zeros_like(hidden, dtype=torch.float32).index_put((rows, position), move)
        changed = (hidden.float() + added).to(hidden.dtype)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with hooked({block: add}):
        yield


def _hidden(output: Any) -> Tensor:
    """The hidden states of a module's output, which some decoder layers return in a tuple."""
    return output[0] if isinstance(output, tuple) else output


# What a method decided about the prompts that this thread or task is computing.
_current: ContextVar[tuple[HookMethod, Any] | None] = ContextVar("scen_baseline_decision", default=None)


class HookMethod(Method):
    """A method whose hooks act only inside `answering` or `following`, in the thread or task that entered it."""

    def __init__(self, context: MethodContext, settings: Settings) -> None:
        super().__init__(context, settings)
        self._handles: list[Any] = []

    @abstractmethod
    def hooked_modules(self) -> Sequence[nn.Module]:
        """The modules whose outputs change."""

    @abstractmethod
    def edited_output(self, index: int, hidden: Tensor, output: Tensor, decision: Any) -> Tensor | None:
        """The new output of the hooked module `index` for its input `hidden`; None keeps the base's `output`."""

    @abstractmethod
    def decide(self, ids: Tensor, mask: Tensor) -> Any:
        """Which edits apply to these prompts (rows, tokens)."""

    def attach(self) -> None:
        if not self.attached:
            self._handles = self.register_hooks()
        super().attach()

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        super().detach()

    def register_hooks(self) -> list[Any]:
        modules = enumerate(self.hooked_modules())
        return [module.register_forward_hook(partial(self._hook, index)) for index, module in modules]

    def _hook(self, index: int, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        decision = self.current_decision()
        return None if decision is None else self.edited_output(index, args[0], output, decision)

    @contextmanager
    def answering(self, ids: Tensor, mask: Tensor) -> Iterator[None]:
        with self.following(self.decide(ids, mask) if self.attached else None):
            yield

    @contextmanager
    def following(self, decision: Any) -> Iterator[None]:
        """Inside this block the hooks follow this decision; None keeps the base's outputs."""
        token = _current.set((self, decision))
        try:
            yield
        finally:
            _current.reset(token)

    def current_decision(self) -> Any:
        """The decision of the innermost block, if that is this method's."""
        method, decision = _current.get() or (None, None)
        return decision if method is self else None


def per_row(tensor: Tensor, rows: int) -> Tensor:
    """Repeat a tensor with one entry per sequence for a batch with k consecutive rows per sequence (beams)."""
    if rows % len(tensor):
        raise ValueError(f"the batch has {rows} rows, not a multiple of its {len(tensor)} sequences")
    return tensor.repeat_interleave(rows // len(tensor), dim=0)
