"""The cached prefix: layers below the edited one run once per edit, every training step starts above them.

Layers 0..l-1 are frozen and see no expert, so what enters layer l is the same at every step, and so is what enters
the projection there. Both are recorded in one pass; then the model runs with those layers standing still, each
handing on the recording. All else (masks, positions, final norm, output head) is the model's own code, so every
architecture keeps its own way of doing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.model.ffn import EditedLayer

# What this thread or task records into or stands still on: the model's layers are everybody's.
_training: ContextVar[object | None] = ContextVar("scen_training", default=None)


@dataclass(frozen=True, eq=False)
class Prefix:
    """What enters layer l, `residual` (rows, tokens, d), and its projection, `inputs` (rows, tokens, h)."""

    residual: Tensor
    inputs: Tensor

    def of(self, rows: Tensor) -> Prefix:
        """The prefix of some rows alone."""
        return Prefix(self.residual[rows], self.inputs[rows])


class _Recorded(Exception):
    """Ends the recording pass: nothing above need run."""


@torch.no_grad()
def record_prefix(model: PreTrainedModel, edited: EditedLayer, input_ids: Tensor) -> Prefix:
    """Run layers 0..l once on `input_ids` (rows, tokens), as far as the projection."""
    seen: list[Tensor] = []

    def at_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _training.get() is seen:
            seen.append(args[0] if args else kwargs["hidden_states"])

    def at_projection(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if _training.get() is seen:
            seen.append(args[0])
            raise _Recorded

    handles = [
        edited.layers[edited.index].register_forward_pre_hook(at_layer, with_kwargs=True),
        edited.projection.register_forward_pre_hook(at_projection),
    ]
    token = _training.set(seen)
    try:
        model(input_ids=input_ids, use_cache=False)
    except _Recorded:
        pass
    finally:
        for handle in handles:
            handle.remove()
        _training.reset(token)
    return Prefix(*seen)


@contextmanager
def standing_still(edited: EditedLayer, prefix: Prefix) -> Iterator[None]:
    """Inside this block layers below the edited one compute nothing and hand on the recording.

    Other threads that run the model meanwhile meet its layers as they are.
    """
    below = list(edited.layers)[: edited.index]
    token = _training.set(prefix)

    def still(compute: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return prefix.residual if in_training(prefix) else compute(*args, **kwargs)

        return forward

    for layer in below:
        layer.forward = still(layer.forward)  # an instance attribute hides the class's
    try:
        yield
    finally:
        _training.reset(token)
        for layer in below:
            del layer.forward


def in_training(prefix: Prefix) -> bool:
    """Whether this thread or task is inside `standing_still(..., prefix)`."""
    return _training.get() is prefix
