"""The prefix cache: what experts cannot change is computed once per edit, and every training step starts above it.

Layers 0 to l-1 are frozen and see no expert. So the input of layer l is the same at every training step, and so are the
outputs of its matrices up to the projection. One pass records them. Then the model runs with those layers and matrices
replaced by their recordings. All else (masks, positions, final norm, output head) is the model's own code, so no
architecture needs special treatment.
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

# What this thread or task records or replays. Other threads may run the same model: hooks must ignore them.
_training: ContextVar[object | None] = ContextVar("scen_training", default=None)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The recording of one pass.

    Attributes:
        residual: The input of layer l, (rows, tokens, d).
        inputs: The input of the projection, (rows, tokens, h).
        outputs: The output of each matrix of layer l up to the projection, by module.
    """

    residual: Tensor
    inputs: Tensor
    outputs: dict[nn.Module, Tensor]

    def select(self, rows: Tensor) -> Prefix:
        """The prefix of these rows only."""
        outputs = {module: output[rows] for module, output in self.outputs.items()}
        return Prefix(self.residual[rows], self.inputs[rows], outputs)


class _Recorded(Exception):
    """Ends the recording pass: layers above need not run."""


@torch.no_grad()
def record_prefix(model: PreTrainedModel, edited: EditedLayer, input_ids: Tensor) -> Prefix:
    """Run layers 0 to l once on `input_ids` (rows, tokens), up to the projection."""
    layer = edited.layers[edited.index]
    recorded: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # input and output of each matrix
    residual: list[Tensor] = []

    def before_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _training.get() is recorded:
            residual.append(args[0] if args else kwargs["hidden_states"])

    def after_matrix(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if _training.get() is recorded:
            recorded[module] = args[0], output
            if module is edited.projection:
                raise _Recorded

    matrices = [module for module in layer.modules() if isinstance(module, (nn.Linear, Conv1D))]
    handles: list[Any] = [module.register_forward_hook(after_matrix) for module in matrices]
    handles.append(layer.register_forward_pre_hook(before_layer, with_kwargs=True))
    token = _training.set(recorded)
    try:
        model(input_ids=input_ids, use_cache=False)
    except _Recorded:
        pass
    finally:
        for handle in handles:
            handle.remove()
        _training.reset(token)
    outputs = {module: output for module, (_inputs, output) in recorded.items()}
    inputs = recorded[edited.projection][0]
    return Prefix(residual[0].to(inputs.device), inputs, outputs)  # layer l-1 may be on another device


@contextmanager
def replay_prefix(edited: EditedLayer, prefix: Prefix) -> Iterator[None]:
    """Inside this block, recorded modules return their recording and compute nothing. Other threads that run the model
    at the same time are not affected."""
    recordings = dict.fromkeys(list(edited.layers)[: edited.index], prefix.residual) | prefix.outputs
    original_forwards = {module: vars(module).get("forward") for module in recordings}
    token = _training.set(prefix)

    def replay(compute: Callable[..., Any], recording: Tensor) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return recording if in_training(prefix) else compute(*args, **kwargs)

        return forward

    for module, recording in recordings.items():
        module.forward = replay(module.forward, recording)  # an instance attribute hides the class's method
    try:
        yield
    finally:
        _training.reset(token)
        for module, forward in original_forwards.items():
            if forward is None:
                del module.forward
            else:  # accelerate sets one if the base is spread over devices
                module.forward = forward


def in_training(prefix: Prefix) -> bool:
    """Whether this thread or task is inside `replay_prefix(..., prefix)`."""
    return _training.get() is prefix
