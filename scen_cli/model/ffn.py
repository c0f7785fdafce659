"""Find the projections of the edited layer, in each architecture that scen supports.

A table maps each model type to the names of its decoder layers and of three projections inside a layer. Every
projection runs once per token; the input of `down` is the hidden activation of the FFN: the key.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from scen_cli.errors import UsageError
from scen_cli.model.device import device_of
from scen_cli.model.quantization import quantization_of, quantized_by_bitsandbytes, weight_of


@dataclass(frozen=True)
class ModuleNames:
    """Names of a model's decoder `layers` and, inside a layer, of W_down, W_up and the output of W_attn."""

    layers: str
    down: str
    up: str | None
    attn: str


_GATED = ModuleNames("layers", "mlp.down_proj", "mlp.up_proj", "self_attn.o_proj")
ARCHITECTURES: dict[str, ModuleNames] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _GATED),
    "phi3": ModuleNames("layers", "mlp.down_proj", None, "self_attn.o_proj"),  # W_up and the gate are one matrix
    "gpt2": ModuleNames("h", "mlp.c_proj", "mlp.c_fc", "attn.c_proj"),
}
TARGET_MODULES = ("down", "up", "attn")  # the modules that experts can replace: the paper's W_down, W_up and W_attn
_MOE_SETTINGS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_UNQUANTISED = "use an unquantised base; `--quantize 8bit` or `4bit` can quantise it"


@dataclass(frozen=True)
class EditedLayer:
    """The decoder layer that edits change.

    Attributes:
        layers: All decoder layers.
        index: The 0-based index l of the edited layer.
        down_proj: The module whose input is the key; in another layer if the recipe has a `key_layer`.
        down_proj_name: Its full name in the model.
        projection: The module that experts replace: `down_proj`, unless the target module is another.
        module_name: Its full name in the model.
    """

    layers: nn.ModuleList
    index: int
    down_proj: nn.Linear | Conv1D
    down_proj_name: str
    projection: nn.Linear | Conv1D
    module_name: str

    def base_weight(self) -> Tensor:
        """A float32 copy of the projection's weight, (out, in): (d, h) for W_down. Full experts start from it."""
        weight = weight_of(self.projection)
        return (weight.T if isinstance(self.projection, Conv1D) else weight).contiguous()

    def as_stored(self, weight: Tensor) -> Tensor:
        """A weight (out, in) in the base's own layout: GPT-2's Conv1D stores it transposed."""
        return weight.T if isinstance(self.projection, Conv1D) else weight

    @property
    def projection_shape(self) -> tuple[int, int]:
        """(out, in) of the projection: (d, h) for W_down."""
        return _shape(self.projection)

    @property
    def device(self) -> torch.device:
        """The device that the projection computes on."""
        return device_of(self.projection)

    @property
    def ffn_width(self) -> int:
        """h: the width of a key."""
        return _shape(self.down_proj)[1]


def find_layer(
    model: PreTrainedModel, layer: int, target_module: str = "down", key_layer: int | None = None
) -> EditedLayer:
    """Find the projections of one decoder layer.

    Args:
        model: The base.
        layer: The 0-based index of the decoder layer.
        target_module: The module that experts replace, one of `TARGET_MODULES`.
        key_layer: The layer whose `down_proj` has the key as its input; None: the same layer, as in the paper.

    Raises:
        UsageError: A layer or the target module does not exist, the architecture is unknown or a mixture of experts,
            or a projection is neither a plain matrix nor one that bitsandbytes has quantised.
    """
    names = _module_names(model)
    if target_module not in TARGET_MODULES:
        raise UsageError(f"unknown target module `{target_module}`", hint=f"one of: {', '.join(TARGET_MODULES)}")
    name = getattr(names, target_module)
    if name is None:
        raise UsageError(
            f"`{model.config.model_type}` has no separate W_{target_module}",
            hint="`--target-module down` is the paper's choice",
        )
    layers = getattr(model.base_model, names.layers)
    key_layer = layer if key_layer is None else key_layer
    for number in (layer, key_layer):
        if not 0 <= number < len(layers):
            raise UsageError(f"layer {number} does not exist: this base has layers 0 to {len(layers) - 1}")
    prefix = f"{model.base_model_prefix}.{names.layers}"
    down_proj, projection = _matrix(layers[key_layer], names.down), _matrix(layers[layer], name)
    down_name, module_name = f"{prefix}.{key_layer}.{names.down}", f"{prefix}.{layer}.{name}"
    return EditedLayer(layers, layer, down_proj, down_name, projection, module_name)


def ridge_update(c: Tensor, keys: Tensor, residual: Tensor) -> Tensor:
    """The change of W_down that maps each key k to W k + r and moves other keys least (regularised least squares): the
    closed form of MEMIT and COMEBA-HK.

    Args:
        c: Second moment of the keys that must stay, scaled by their weight, (h, h).
        keys: Keys of the edits as columns, K (h, n).
        residual: Wanted changes of the output as columns, R (d, n).

    Returns:
        R K^T (C + K K^T)^-1, (d, h), in float64.
    """
    keys, residual = keys.double(), residual.double()
    return torch.linalg.solve(c.double() + keys @ keys.T, keys @ residual.T).T


def _module_names(model: PreTrainedModel) -> ModuleNames:
    model_type = model.config.model_type
    if any(getattr(model.config, name, None) for name in _MOE_SETTINGS):
        raise UsageError(
            f"`{model_type}` is a mixture of experts: no single down projection of a layer sees every token, "
            "so an edit's expert cannot replace it",
            hint=f"supported dense architectures: {', '.join(ARCHITECTURES)}",
        )
    if model_type not in ARCHITECTURES:
        raise UsageError(
            f"scen does not support the architecture `{model_type}`",
            hint=f"supported architectures: {', '.join(ARCHITECTURES)}",
        )
    if (method := quantization_of(model.config)) not in (None, "bitsandbytes"):
        raise UsageError(f"the base is quantised by {method}, which scen does not support", hint=_UNQUANTISED)
    return ARCHITECTURES[model_type]


def _shape(module: nn.Linear | Conv1D) -> tuple[int, int]:
    """(out, in), for both layouts."""
    return (module.nf, module.nx) if isinstance(module, Conv1D) else (module.out_features, module.in_features)


def _matrix(layer: nn.Module, name: str) -> nn.Linear | Conv1D:
    module = layer.get_submodule(name)
    if type(module) not in (nn.Linear, Conv1D) and not quantized_by_bitsandbytes(module):
        raise UsageError(f"the layer's `{name}` is a {type(module).__name__}, not a plain matrix", hint=_UNQUANTISED)
    return module
