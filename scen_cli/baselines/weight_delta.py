"""Methods that change the base's own weights: what they have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.func import functional_call

from scen_cli.baselines.method import Method, MethodContext, Settings
from scen_cli.model.ffn import EditedLayer


class WeightMethod(Method):
    """Keeps `weights`: what some of the base's parameters are to be, by name, in float32. They stand in the model while
    the method is attached; the base's own are put back after."""

    def __init__(self, given: MethodContext, settings: Settings) -> None:
        super().__init__(given, settings)
        parameters = dict(self.model.named_parameters())
        self.parameters = {name: parameters[name] for name in self.edited_names()}
        self.weights = {name: one.detach().float().clone() for name, one in self.parameters.items()}
        self._own: dict[str, Tensor] = {}

    @abstractmethod
    def edited_names(self) -> list[str]:
        """The base's parameters that edits change."""

    def attach(self) -> None:
        if not self.attached:
            self._own = {name: one.detach().clone() for name, one in self.parameters.items()}
            self._put(self.weights)
        super().attach()

    def detach(self) -> None:
        if self.attached:
            self._put(self._own)
            self._own = {}
        super().detach()

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def learned(self, weights: dict[str, Tensor]) -> None:
        """These are the weights from now on."""
        self.weights = {name: one.detach().float().clone() for name, one in weights.items()}
        if self.attached:
            self._put(self.weights)

    def own_weights(self) -> dict[str, Tensor]:
        """The base's, whether or not the edited ones stand in the model."""
        return {name: (self._own or self.parameters)[name].detach().float() for name in self.parameters}

    def run(self, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Logits of texts padded on the right, by these float32 weights in the base's own dtype."""
        cast = {name: weights[name].to(one.dtype) for name, one in self.parameters.items()}
        logits: Tensor = functional_call(self.model, cast, kwargs={"input_ids": ids, "use_cache": False}).logits
        return logits

    def state(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load(self, state: dict[str, Tensor]) -> None:
        for name, own in self.weights.items():
            if state[name].shape != own.shape:
                raise ValueError(f"`{name}` is {list(state[name].shape)}, the base's {list(own.shape)}")
        self.learned({name: state[name].to(self.base.device) for name in self.weights})


def weight_name(layer: EditedLayer) -> str:
    return f"{layer.down_proj_name}.weight"
