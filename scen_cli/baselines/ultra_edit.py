"""UltraEdit (Gu et al. 2025): each turn of edits moves weights in closed form, by the gradients at the answer's tokens.

Nothing is trained but running means and deviations, by which what enters a matrix and the gradients that leave it are
standardised over all turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from scen_cli.baselines.closed_form_memory import recorded
from scen_cli.baselines.method import Method, MethodContext, Settings, attached
from scen_cli.baselines.training_examples import IGNORED, Examples
from scen_cli.baselines.weight_delta import WeightMethod, weight_name
from scen_cli.data.records import EditRecord


class UltraEditSettings(Settings):
    """The authors': turns of 100 edits, eta 1e-6 (Llama-3-8B), a ridge of 1."""

    batch: int | None = Field(100, ge=1, description="edits fitted at once; none: all there are")
    layers: int = Field(1, ge=1, description="decoder layers in a row, up to the project's, whose `down_proj` moves")
    eta: float = Field(1e-6, gt=0, description="the length of a move")


class Running:
    """Mean and variance (width,) of all rows there were, by Chan's update."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean, self.squares = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(2))

    def take_in(self, rows: Tensor) -> None:
        rows = rows.double()
        count = self.count + len(rows)
        apart = rows.mean(dim=0) - self.mean
        self.squares += ((rows - rows.mean(dim=0)) ** 2).sum(dim=0) + apart**2 * self.count * len(rows) / count
        self.mean, self.count = self.mean + apart * len(rows) / count, count

    def standardised(self, rows: Tensor) -> Tensor:
        deviation = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        return (rows.double() - self.mean) / (deviation + 1e-12)


class UltraEdit(WeightMethod):
    """Weights that move, and the running statistics of each layer's inputs and gradients."""

    name = "ultra-edit"
    settings_type: ClassVar[type[Settings]] = UltraEditSettings
    settings: UltraEditSettings

    def __init__(self, given: MethodContext, settings: UltraEditSettings) -> None:
        super().__init__(given, settings)
        widths = [(one.ffn_width, one.projection_shape[0]) for one in self.layers]
        self.running = [[Running(width, self.base.device) for width in both] for both in widths]

    def edited_names(self) -> list[str]:
        self.layers = self.given.layers(self.settings.layers)
        return [weight_name(layer) for layer in self.layers]

    def fit(self, edits: Sequence[EditRecord]) -> None:
        examples = Examples.of(self.template, [(edit.prompt, edit.target) for edit in edits], self.base.device)
        with attached(self):
            moves = self._read(examples)
        weights = dict(self.weights)
        for layer, (inputs, gradients), statistics in zip(self.layers, moves, self.running, strict=True):
            for one, rows in zip(statistics, (inputs, gradients), strict=True):
                one.take_in(rows)
            h, g = (one.standardised(rows) for one, rows in zip(statistics, (inputs, gradients), strict=True))
            v = -self.settings.eta * (h**2).sum(dim=1, keepdim=True) * g
            ridge = torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
            delta = torch.linalg.solve(h.T @ h + ridge, h.T @ v).T
            name = weight_name(layer)
            weights[name] = weights[name] + layer.as_stored(delta).float()
        self.learned(weights)

    def _read(self, examples: Examples) -> list[tuple[Tensor, Tensor]]:
        """For each layer what enters `down_proj` (n, h) at the tokens that predict the answers, and the gradient (n, d)
        of the loss with respect to what leaves it there."""
        scored = examples.labels != IGNORED
        for layer in self.layers:
            layer.down_proj.weight.requires_grad_(True)
        try:
            with torch.enable_grad(), recorded(*(layer.down_proj for layer in self.layers)) as seen:
                loss = examples.losses(self.model(input_ids=examples.ids, use_cache=False).logits).sum()
                left = [seen[layer.down_proj][1] for layer in self.layers]
                gradients = torch.autograd.grad(loss, left)
        finally:
            for layer in self.layers:
                layer.down_proj.weight.requires_grad_(False)
        entered = [seen[layer.down_proj][0].detach()[scored].float() for layer in self.layers]
        return [(one, gradient[scored].float()) for one, gradient in zip(entered, gradients, strict=True)]

    def state(self) -> dict[str, Tensor]:
        named = super().state()
        for layer, both in zip(self.layers, self.running, strict=True):
            for what, one in zip(("inputs", "gradients"), both, strict=True):
                named |= {f"{layer.index}.{what}.{name}": value for name, value in vars(one).items()}
        return named

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        for layer, both in zip(self.layers, self.running, strict=True):
            for what, one in zip(("inputs", "gradients"), both, strict=True):
                for name in vars(one):
                    setattr(one, name, state[f"{layer.index}.{what}.{name}"].to(self.base.device))


METHODS: list[type[Method]] = [UltraEdit]
