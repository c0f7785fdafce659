"""Blocks in which forward hooks record or move what modules of the base compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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
