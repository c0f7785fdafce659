"""Where the edited layer's down projection is, in each architecture scen knows.

Facts as data: a model type maps to the names of its decoder layers and of the down projection
within one. All of them apply it once per token, to the FFN's hidden activation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from scen_cli.errors import UsageError

_GATED = ("layers", "mlp.down_proj")
LOCATIONS: dict[str, tuple[str, str]] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3_text": _GATED,
    "phi3": _GATED,
    "gpt2": ("h", "mlp.c_proj"),
}
_MOE_SETTINGS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class EditedLayer:
    """Decoder layer `index` (0-based) of `layers`, its down projection and that one's name in the model."""

    layers: nn.ModuleList
    index: int
    down_proj: nn.Linear | Conv1D
    module_name: str

    def base_weight(self) -> torch.Tensor:
        """W_down as (d, h) in float32, a copy. (GPT-2's Conv1D keeps it transposed.)"""
        weight = self.down_proj.weight.detach()
        weight = weight.T if isinstance(self.down_proj, Conv1D) else weight
        return weight.float().clone(memory_format=torch.contiguous_format)

    @property
    def ffn_width(self) -> int:
        """h: the width of a key."""
        rows, columns = self.down_proj.weight.shape
        return rows if isinstance(self.down_proj, Conv1D) else columns


def find_layer(model: PreTrainedModel, layer: int) -> EditedLayer:
    """Find the down projection of one decoder layer.

    Raises `UsageError` for a layer that is not there, a mixture of experts, an unknown
    architecture, or a projection that is not a plain matrix (a quantised one, say).
    """
    model_type = model.config.model_type
    if any(getattr(model.config, name, None) for name in _MOE_SETTINGS):
        raise UsageError(
            f"`{model_type}` is a mixture of experts: no single down projection of a layer sees every token, "
            "so there is no one place for an edit's expert",
            hint=f"dense architectures that work: {', '.join(LOCATIONS)}",
        )
    if model_type not in LOCATIONS:
        raise UsageError(
            f"scen does not know where `{model_type}` keeps its FFN's down projection",
            hint=f"architectures that work: {', '.join(LOCATIONS)}",
        )
    layers_name, down_name = LOCATIONS[model_type]
    layers = getattr(model.base_model, layers_name)
    if not 0 <= layer < len(layers):
        raise UsageError(f"layer {layer} is not there: this base has layers 0 to {len(layers) - 1}")
    down_proj = layers[layer].get_submodule(down_name)
    if type(down_proj) not in (nn.Linear, Conv1D):
        raise UsageError(
            f"layer {layer}'s down projection is a {type(down_proj).__name__}, not a plain matrix",
            hint="load the base unquantised",
        )
    return EditedLayer(layers, layer, down_proj, f"{model.base_model_prefix}.{layers_name}.{layer}.{down_name}")
