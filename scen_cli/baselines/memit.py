"""MEMIT (Meng et al. 2023): all edits written into `down_proj` of a few layers in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from scen_cli.baselines.closed_form_memory import Contexts, at_places, mean_by_edit, recorded, second_moment
from scen_cli.baselines.method import Method, MethodContext, Settings, attached
from scen_cli.baselines.target_values import ValueSettings, find_values
from scen_cli.baselines.weight_delta import WeightMethod, weight_name
from scen_cli.data.records import EditRecord
from scen_cli.model.ridge_update import ridge_update


class MemitSettings(ValueSettings):
    """One batch of all edits. 15000 is the authors' weight of what is known, for GPT-J."""

    batch: int | None = Field(None, ge=1, description="edits fitted at once; none: all there are")
    known: float = Field(15000, gt=0, description="lambda: the weight of the keys that are known")


class Memit(WeightMethod):
    """C is that of the base; a second batch starts from the weights that the first one left, as if it were new."""

    name = "memit"
    settings_type: ClassVar[type[Settings]] = MemitSettings
    settings: MemitSettings

    def __init__(self, given: MethodContext, settings: MemitSettings) -> None:
        super().__init__(given, settings)
        self.c: list[Tensor] = []

    def prepare(self) -> None:
        self.c = [self.settings.known * one for one in second_moment(self.given, self.layers)]

    def edited_names(self) -> list[str]:
        self.layers = self.given.layers(self.settings.layers)
        return [weight_name(layer) for layer in self.layers]

    def fit(self, edits: Sequence[EditRecord]) -> None:
        config, last = self.settings, self.layers[-1]
        contexts = Contexts.of(self.given, edits, config.contexts, config.at == "subject")
        with attached(self):
            values = find_values(self.model, self.template, last, contexts, edits, config)
            for number, (layer, c) in enumerate(zip(self.layers, self.c, strict=True)):
                keys, residual = read(self, contexts, layer.down_proj, last.layers[last.index], values)
                delta = ridge_update(c, keys.T, residual.T / (len(self.layers) - number))
                name = weight_name(layer)
                self.learned({**self.weights, name: self.weights[name] + layer.as_stored(delta).float()})

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), **{f"{one.index}.c": c for one, c in zip(self.layers, self.c, strict=True)}}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.c = [state[f"{one.index}.c"].to(self.base.device) for one in self.layers]


@torch.no_grad()
def read(
    method: Method, contexts: Contexts, down_proj: torch.nn.Module, last: torch.nn.Module, values: Tensor
) -> tuple[Tensor, Tensor]:
    """The keys (edits, h) of one layer as the model is now, means over contexts; and how far (edits, d) the last edited
    layer's output is from the values."""
    with recorded(down_proj, last) as seen:
        method.model(input_ids=contexts.examples.ids, use_cache=False)
    keys = mean_by_edit(at_places(seen[down_proj][0], contexts), contexts)
    return keys, values - at_places(seen[last][1], contexts)[contexts.plain]


METHODS: list[type[Method]] = [Memit]
