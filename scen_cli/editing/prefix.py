"""The cached prefix: layers below the edited one run once per edit, every training step starts above them.

Layers 0..l-1 are frozen and see no expert, so what enters layer l is the same at every step. It
is recorded in one pass; then the model runs with those layers standing still, each handing on
what it was given, and the first handing on the recording. All else (masks, positions, final
norm, output head) is the model's own code, so every architecture keeps its own way of doing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.model.ffn import EditedLayer


class _Recorded(Exception):
    """Ends the recording pass: nothing above need run."""


@torch.no_grad()
def record_prefix(model: PreTrainedModel, edited: EditedLayer, input_ids: Tensor) -> Tensor:
    """Run layers 0..l-1 once on `input_ids` (1, tokens): what enters layer l, (1, tokens, d)."""
    seen: list[Tensor] = []

    def at_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Recorded

    handle = edited.layers[edited.index].register_forward_pre_hook(at_layer, with_kwargs=True)
    try:
        model(input_ids=input_ids, use_cache=False)
    except _Recorded:
        pass
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def standing_still(edited: EditedLayer, layer_input: Tensor) -> Iterator[None]:
    """Inside this block layers below the edited one compute nothing; the first returns the recording."""

    def recorded(*_args: Any, **_kwargs: Any) -> Tensor:
        return layer_input

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
