"""UltraEdit (Gu et al. 2025, "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing"): edits in closed form.

Each batch moves W_down by ridge regression from the standardised inputs to the standardised gradients at the tokens
that predict the answers. Nothing is trained: means and deviations run over all batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.method import Settings, attached
from scen_cli.baselines.weight_method import WeightMethod, inputs_and_gradients
from scen_cli.data.records import EditRecord


class UltraEditSettings(Settings):
    """The authors': batches of 100 edits, eta 1e-6 (Llama-3-8B), a ridge of 1."""

    batch: int | None = Field(100, ge=1, description="edits fitted together; none: all of them")
    layers: int = Field(1, ge=1, description="consecutive decoder layers to edit, up to the project's")
    eta: float = Field(1e-6, gt=0, description="the length of a move")


class RunningMoments:
    """Mean and variance (width,), in float64, of all rows so far, by Chan's update."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean, self.squares = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(2))

    def standardise(self, rows: Tensor) -> Tensor:
        """Add rows (n, width), and return them standardised by the moments with them."""
        rows = rows.double()
        count = self.count + len(rows)
        difference = rows.mean(dim=0) - self.mean
        self.squares += ((rows - rows.mean(dim=0)) ** 2).sum(dim=0) + difference**2 * self.count * len(rows) / count
        self.mean, self.count = self.mean + difference * len(rows) / count, count
        deviation = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        return (rows - self.mean) / (deviation + 1e-12)


class UltraEdit(WeightMethod):
    """Weights that move, and for each layer the running moments of its inputs (h,) and gradients (d,)."""

    name = "ultra-edit"
    settings: UltraEditSettings

    def __init__(self, context: MethodContext, settings: UltraEditSettings) -> None:
        super().__init__(context, settings, settings.layers)
        self.moments: dict[str, RunningMoments] = {}
        for layer in self.layers:
            d, h = layer.projection_shape
            self.moments[f"{layer.index}.inputs"] = RunningMoments(h, self.base.device)
            self.moments[f"{layer.index}.gradients"] = RunningMoments(d, self.base.device)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        examples = self.examples(edits)
        with attached(self):
            factors = inputs_and_gradients(self.model, self.layers, examples)
        for layer, (inputs, gradients) in zip(self.layers, factors, strict=True):
            h = self.moments[f"{layer.index}.inputs"].standardise(inputs[examples.scored])
            g = self.moments[f"{layer.index}.gradients"].standardise(gradients[examples.scored])
            v = -self.settings.eta * (h**2).sum(dim=1, keepdim=True) * g
            ridge = torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
            self.add(layer, torch.linalg.solve(h.T @ h + ridge, h.T @ v).T)

    def state(self) -> dict[str, Tensor]:
        tensors = super().state()
        for key, moments in self.moments.items():
            tensors |= {f"{key}.{name}": value for name, value in vars(moments).items()}
        return tensors

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        for key, moments in self.moments.items():
            shapes = {f"{key}.{name}": value.shape for name, value in vars(moments).items()}
            moments.count, moments.mean, moments.squares = self.loaded(state, shapes)
