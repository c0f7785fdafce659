"""The cached prefix: what experts cannot change runs once per edit, and every training step starts above it.

Layers 0..l-1 are frozen and see no expert, so what enters layer l is the same at every step, and so is what each
matrix gives there, up to the projection. All of it is recorded in one pass; then the model runs with those layers and
matrices standing still, each handing on its recording. All else (masks, positions, final norm, output head) is the
model's own code, so every architecture keeps its own way of doing it.
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
from transformers.pytorch_utils import Conv1D

from scen_cli.model.ffn import EditedLayer

# What this thread or task records into or stands still on: the model's layers are everybody's.
_training: ContextVar[object | None] = ContextVar("scen_training", default=None)


@dataclass(frozen=True, eq=False)
class Prefix:
    """What enters layer l, `residual` (rows, tokens, d), and its projection, `inputs` (rows, tokens, h); what each of
    the layer's matrices gives, `outputs`, up to the projection, by module."""

    residual: Tensor
    inputs: Tensor
    outputs: dict[nn.Module, Tensor]

    def of(self, rows: Tensor) -> Prefix:
        """The prefix of some rows alone."""
        outputs = {module: output[rows] for module, output in self.outputs.items()}
        return Prefix(self.residual[rows], self.inputs[rows], outputs)


class _Recorded(Exception):
    """Ends the recording pass: nothing above need run."""


@torch.no_grad()
def record_prefix(model: PreTrainedModel, edited: EditedLayer, input_ids: Tensor) -> Prefix:
    """Run layers 0..l once on `input_ids` (rows, tokens), as far as the projection."""
    layer = edited.layers[edited.index]
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    entered: list[Tensor] = []

    def at_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _training.get() is seen:
            entered.append(args[0] if args else kwargs["hidden_states"])

    def at_matrix(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if _training.get() is seen:
            seen[module] = args[0], output
            if module is edited.projection:
                raise _Recorded

    matrices = [module for module in layer.modules() if isinstance(module, (nn.Linear, Conv1D))]
    handles: list[Any] = [module.register_forward_hook(at_matrix) for module in matrices]
    handles.append(layer.register_forward_pre_hook(at_layer, with_kwargs=True))
    token = _training.set(seen)
    try:
        model(input_ids=input_ids, use_cache=False)
    except _Recorded:
        pass
    finally:
        for handle in handles:
            handle.remove()
        _training.reset(token)
    outputs = {module: output for module, (_inputs, output) in seen.items()}
    inputs = seen[edited.projection][0]
    return Prefix(entered[0].to(inputs.device), inputs, outputs)  # (layer l-1 may be on another device)


@contextmanager
def replay_prefix(edited: EditedLayer, prefix: Prefix) -> Iterator[None]:
    """Inside this block what was recorded computes nothing, and hands on the recording.

    Other threads that run the model meanwhile meet its layers as they are.
    """
    recorded = dict.fromkeys(list(edited.layers)[: edited.index], prefix.residual) | prefix.outputs
    before = {module: vars(module).get("forward") for module in recorded}
    token = _training.set(prefix)

    def still(compute: Callable[..., Any], recording: Tensor) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return recording if in_training(prefix) else compute(*args, **kwargs)

        return forward

    for module, recording in recorded.items():
        module.forward = still(module.forward, recording)  # an instance attribute hides the class's
    try:
        yield
    finally:
        _training.reset(token)
        for module, own in before.items():
            if own is None:
                del module.forward
            else:  # accelerate's, of a base that is spread over devices
                module.forward = own


def in_training(prefix: Prefix) -> bool:
    """Whether this thread or task is inside `replay_prefix(..., prefix)`."""
    return _training.get() is prefix
