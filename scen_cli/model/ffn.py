"""Where an edited layer's projections are, in each architecture scen knows.

Facts as data: a model type maps to the names of its decoder layers and of three projections within
one. All of them are applied once per token; the input of `down` is the FFN's hidden activation, the key.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from scen_cli.errors import UsageError
from scen_cli.model.device import device_of
from scen_cli.model.quantization import quantization_of, quantized_by_bitsandbytes, weight_of


@dataclass(frozen=True)
class Names:
    """Names within a model: its decoder `layers`; within a layer W_down, W_up and the output of W_attn."""

    layers: str
    down: str
    up: str | None
    attn: str


_GATED = Names("layers", "mlp.down_proj", "mlp.up_proj", "self_attn.o_proj")
LOCATIONS: dict[str, Names] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3_text": _GATED,
    "phi3": Names("layers", "mlp.down_proj", None, "self_attn.o_proj"),  # its W_up is one matrix with the gate
    "gpt2": Names("h", "mlp.c_proj", "mlp.c_fc", "attn.c_proj"),
}
TARGET_MODULES = ("down", "up", "attn")  # where an expert may sit: the paper's W_down, W_up and W_attn
_MOE_SETTINGS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class EditedLayer:
    """Decoder layer `index` (0-based) of `layers`: its `down_proj`, whose input is the key, and the
    `projection` that experts stand in for, which is the same one unless they sit elsewhere."""

    layers: nn.ModuleList
    index: int
    down_proj: nn.Linear | Conv1D
    down_proj_name: str
    projection: nn.Linear | Conv1D
    module_name: str

    def base_weight(self) -> torch.Tensor:
        """The weight experts start from, (out, in) in float32, a copy: (d, h) for W_down.
        (GPT-2's Conv1D keeps it transposed.)"""
        weight = weight_of(self.projection)
        return (weight.T if isinstance(self.projection, Conv1D) else weight).contiguous()

    def as_stored(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight of the projection, (out, in), as the base stores it: the way back from `base_weight`."""
        return weight.T if isinstance(self.projection, Conv1D) else weight

    @property
    def projection_shape(self) -> tuple[int, int]:
        """(out, in) of the projection: (d, h) for W_down."""
        return _shape(self.projection)

    @property
    def device(self) -> torch.device:
        """Where the projection computes."""
        return device_of(self.projection)

    @property
    def ffn_width(self) -> int:
        """h: the width of a key."""
        return _shape(self.down_proj)[1]


def find_layer(model: PreTrainedModel, layer: int, target_module: str = "down") -> EditedLayer:
    """Find the projections of one decoder layer; experts are to sit at `target_module`, one of `TARGET_MODULES`.

    Raises `UsageError` for a layer or target module that does not exist, a mixture of experts, an unknown
    architecture, or a projection that is neither a plain matrix nor one that bitsandbytes has quantised.
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
    if (how := quantization_of(model.config)) not in (None, "bitsandbytes"):
        raise UsageError(
            f"the base is quantised by {how}, whose matrices scen does not know",
            hint="an unquantised base works, and `--quantize 8bit` or `4bit` of it",
        )
    names = LOCATIONS[model_type]
    if target_module not in TARGET_MODULES:
        raise UsageError(f"target module `{target_module}` is not known", hint=f"one of: {', '.join(TARGET_MODULES)}")
    here = getattr(names, target_module)
    if here is None:
        raise UsageError(
            f"`{model_type}` has no W_{target_module} by itself", hint="`--target-module down` is the paper's"
        )
    layers = getattr(model.base_model, names.layers)
    if not 0 <= layer < len(layers):
        raise UsageError(f"layer {layer} is not there: this base has layers 0 to {len(layers) - 1}")
    full_name = f"{model.base_model_prefix}.{names.layers}.{layer}.{{}}"
    return EditedLayer(
        layers,
        layer,
        _matrix(layers[layer], names.down),
        full_name.format(names.down),
        _matrix(layers[layer], here),
        full_name.format(here),
    )


def _shape(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """(out, in), whatever form the weight is stored in."""
    return (module.nf, module.nx) if isinstance(module, Conv1D) else (module.out_features, module.in_features)


def _matrix(layer: nn.Module, name: str) -> nn.Linear | Conv1D:
    module = layer.get_submodule(name)
    if type(module) not in (nn.Linear, Conv1D) and not quantized_by_bitsandbytes(module):
        raise UsageError(
            f"the layer's `{name}` is a {type(module).__name__}, not a plain matrix",
            hint="an unquantised base works, and `--quantize 8bit` or `4bit` of it",
        )
    return module
