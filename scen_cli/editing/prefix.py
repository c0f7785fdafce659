"""The cached prefix: layers below the edited one run once per edit, every training step starts above them.

Layers 0..l-1 are frozen and see no expert, so what enters layer l is the same at every step. It
is recorded in one pass; then the model runs with those layers standing still, each handing on
what it was given, and the first handing on the recording. All else (masks, positions, final
norm, output head) is the model's own code, so every architecture keeps its own way of doing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.model.ffn import EditedLayer


@dataclass(frozen=True)
class Prefix:
    """What enters layer l, (1, tokens, d), and what enters its down_proj, (1, tokens, h)."""

    layer_input: Tensor
    down_proj_input: Tensor


class _Recorded(Exception):
    """Ends the recording pass: layers above the edited one need not run."""


@torch.no_grad()
def record_prefix(model: PreTrainedModel, edited: EditedLayer, input_ids: Tensor) -> Prefix:
    """Run layers 0..l once on `input_ids` (1, tokens), as far as the edited down_proj."""
    seen: dict[str, Tensor] = {}

    def at_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["layer"] = args[0] if args else kwargs["hidden_states"]

    def at_down_proj(_module: nn.Module, args: tuple[Tensor]) -> None:
        seen["down_proj"] = args[0]
        raise _Recorded

    handles = [
        edited.layers[edited.index].register_forward_pre_hook(at_layer, with_kwargs=True),
        edited.down_proj.register_forward_pre_hook(at_down_proj),
    ]
    try:
        model(input_ids=input_ids, use_cache=False)
    except _Recorded:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return Prefix(seen["layer"], seen["down_proj"])


@contextmanager
def standing_still(edited: EditedLayer, prefix: Prefix) -> Iterator[None]:
    """Inside this block layers below the edited one compute nothing; the first returns the recording."""

    def recorded(*_args: Any, **_kwargs: Any) -> Tensor:
        return prefix.layer_input

    def unchanged(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states

    below = list(edited.layers)[: edited.index]
    for position, layer in enumerate(below):
        layer.forward = unchanged if position else recorded  # an instance attribute hides the class's
    try:
        yield
    finally:
        for layer in below:
            del layer.forward
