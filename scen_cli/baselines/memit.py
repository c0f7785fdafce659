"""MEMIT (Meng et al. 2023, "Mass-Editing Memory in a Transformer"): write all edits into W_down of a few layers, in
closed form (their equation 14, layer by layer as in their Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from scen_cli.baselines.closed_form_memory import ClosedFormSettings, EditContexts, known_keys, layer_update
from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.method import attached
from scen_cli.baselines.target_values import find_values
from scen_cli.baselines.weight_method import WeightMethod
from scen_cli.data.records import EditRecord


class MemitSettings(ClosedFormSettings):
    """One batch of all edits. 15000 is the authors' lambda for GPT-J."""

    batch: int | None = Field(None, ge=1, description="edits fitted together; none: all of them")


class Memit(WeightMethod):
    """`c` (h, h) of each layer is the base's. A second batch starts from the weights that the first one left."""

    name = "memit"
    settings: MemitSettings

    def __init__(self, context: MethodContext, settings: MemitSettings) -> None:
        super().__init__(context, settings, settings.layers)
        self.c: list[Tensor] = []

    def prepare(self) -> None:
        self.c = known_keys(self.context, self.layers, self.settings.known)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        contexts = EditContexts.of(self.context, edits, self.settings.contexts, self.settings.at == "subject")
        with attached(self):
            values = find_values(self.context, self.layers[-1], contexts, edits, self.settings)
            for index, layer in enumerate(self.layers):
                _keys, delta = layer_update(self.model, self.layers, index, self.c[index], contexts, values)
                self.add(layer, delta)

    def state(self) -> dict[str, Tensor]:
        c = {f"{layer.index}.c": c for layer, c in zip(self.layers, self.c, strict=True)}
        return super().state() | c

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.c = self.loaded(state, {f"{layer.index}.c": (layer.ffn_width,) * 2 for layer in self.layers})
