"""`WeightMethod`: methods that change weights of the base."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.hook_method import recorded
from scen_cli.baselines.method import Method, Settings
from scen_cli.baselines.training_examples import Examples, run_texts
from scen_cli.model.ffn import EditedLayer


class WeightMethod(Method):
    """Keeps `weights`: float32 values for some of the base's parameters, by name. `attach` copies them into the
    model, `detach` copies the base's own values back."""

    def __init__(self, context: MethodContext, settings: Settings, layers: int = 1) -> None:
        super().__init__(context, settings)
        self.layers = self.context.layers(layers)
        parameters = dict(self.model.named_parameters())
        self.parameters = {name: parameters[name] for name in self.edited_names()}
        self.weights = {name: parameter.detach().float().clone() for name, parameter in self.parameters.items()}
        self._base_weights: dict[str, Tensor] = {}  # while the method is attached

    def edited_names(self) -> list[str]:
        """Names of the parameters that edits change: W_down of the edited layers."""
        return [_weight_name(layer) for layer in self.layers]

    def attach(self) -> None:
        if not self.attached:
            self._base_weights = {name: weight.detach().clone() for name, weight in self.parameters.items()}
            self._copy(self.weights)
        super().attach()

    def detach(self) -> None:
        if self.attached:
            self._copy(self._base_weights)
            self._base_weights = {}
        super().detach()

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Replace `weights`, and the model's parameters if the method is attached."""
        self.weights = {name: weight.detach().float().clone() for name, weight in weights.items()}
        if self.attached:
            self._copy(self.weights)

    def add(self, layer: EditedLayer, delta: Tensor) -> None:
        """Add `delta` (d, h) to a layer's W_down."""
        name = _weight_name(layer)
        self.set_weights({**self.weights, name: self.weights[name] + layer.as_stored(delta).float()})

    def base_weights(self) -> dict[str, Tensor]:
        """The base's own values, float32, whether or not the method is attached."""
        return {name: (self._base_weights or self.parameters)[name].detach().float() for name in self.parameters}

    def state(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load(self, state: dict[str, Tensor]) -> None:
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        self.set_weights(dict(zip(shapes, self.loaded(state, shapes), strict=True)))


def run_with(model: PreTrainedModel, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits of texts padded on the right; `weights` replace parameters of the model and are cast to their dtype."""
    parameters = dict(model.named_parameters())
    cast = {name: weight.to(parameters[name].dtype) for name, weight in weights.items()}
    return functional_call(model, cast, kwargs={"input_ids": ids, "use_cache": False}).logits


def inputs_and_gradients(
    model: PreTrainedModel, layers: Sequence[EditedLayer], examples: Examples
) -> list[tuple[Tensor, Tensor]]:
    """For each layer, of the summed losses of the examples: the input of `down_proj` (n, tokens, h) and the gradient
    of its output (n, tokens, d), both float32. Their outer products, summed over tokens, are the gradient of W_down."""
    modules = [layer.down_proj for layer in layers]
    for module in modules:
        module.weight.requires_grad_(True)
    try:
        with torch.enable_grad(), recorded(*modules) as seen:
            loss = examples.losses(run_texts(model, examples.ids)).sum()
            gradients = torch.autograd.grad(loss, [seen[module][1] for module in modules])
    finally:
        for module in modules:
            module.weight.requires_grad_(False)
    inputs = [seen[module][0].detach().float() for module in modules]
    return [(entered, gradient.float()) for entered, gradient in zip(inputs, gradients, strict=True)]


def _weight_name(layer: EditedLayer) -> str:
    return f"{layer.down_proj_name}.weight"
