"""GRACE (Hartvigsen et al. 2023, "Aging with GRACE"): a codebook of keys and values at one layer.

A key is the input of the layer's `down_proj` at a prompt's last token. A value replaces the output of `down_proj`. A
prompt within the radius of its nearest key gets that key's value at all of the prompt's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.context import MethodContext, run_texts, take_step
from scen_cli.baselines.hook_method import HookMethod, per_row
from scen_cli.baselines.melo import APART, SAME, pack_labels, unpack_labels
from scen_cli.baselines.method import Settings, attached
from scen_cli.data.records import EditRecord
from scen_cli.model.keys import read_keys
from scen_cli.model.routing import BASE


class GraceSettings(Settings):
    """SCEN's paper: 10 steps, radius 3.0. (GRACE's own: 100 steps, radius 1.0.)"""

    lr: float = Field(1.0, gt=0, description="Adam's learning rate for a value")
    steps: int = Field(10, ge=1, description="Adam steps for a value")
    radius: float = Field(3.0, gt=0, description="radius of a new key, in units of the base's keys")


@dataclass
class _Choice:
    """Which value each prompt gets.

    Attributes:
        rows: (rows,) indices of `values`; `BASE` for none.
        values: (n, d) the codebook's.
        lengths: (rows,) tokens of the prompts, without padding.
        positions: `position_ids` (rows, tokens) of the current forward pass, if it has them.
    """

    rows: Tensor
    values: Tensor
    lengths: Tensor
    positions: Tensor | None = None


class Grace(HookMethod):
    """`keys` (n, h), `values` (n, d), `radii` (n,) and `labels`: the target tokens of each key's edit."""

    name = "grace"
    settings: GraceSettings

    def __init__(self, context: MethodContext, settings: GraceSettings) -> None:
        super().__init__(context, settings)
        [self.layer] = self.context.layers(1)
        d, h = self.layer.projection_shape
        self.keys, self.values = (torch.empty(0, width, device=self.base.device) for width in (h, d))
        self.radii = torch.empty(0, device=self.base.device)
        self.labels: list[tuple[int, ...]] = []
        self._random = torch.Generator().manual_seed(self.context.seed)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        with attached(self):
            for edit in edits:
                self._fit(edit)

    def _fit(self, edit: EditRecord) -> None:
        examples = self.examples([edit])
        key = self._read_keys(*examples.prompts)[0]
        row = self.add(key, tuple(self.template.target_ids(edit.prompt, edit.target)))
        value = self.values[row : row + 1].clone().requires_grad_()
        optimizer = torch.optim.Adam([value], lr=self.settings.lr)
        for _ in range(self.settings.steps):
            with self.following(_Choice(torch.tensor([0]), value, examples.lengths)):
                logits = run_texts(self.model, examples.ids)
            take_step(optimizer, examples.losses(logits).sum())
        self.values[row] = value.detach()[0]

    def add(self, key: Tensor, label: tuple[int, ...]) -> int:
        """Add an edit's key (h,) to the codebook. Returns the row whose value is to be trained."""
        radius = self.settings.radius
        self._forget(key)
        if self.labels:
            nearest, distance = self._nearest(key)
            if distance <= radius + float(self.radii[nearest]):
                if self.labels[nearest] == label:
                    self.radii[nearest] = max(float(self.radii[nearest]), distance)
                    return nearest
                self.radii[nearest] = distance / 2 - APART
                radius = distance / 2 + APART
        value = torch.rand(1, self.values.shape[1], generator=self._random).to(key)
        self.keys, self.values = torch.cat([self.keys, key[None]]), torch.cat([self.values, value])
        self.radii = torch.cat([self.radii, self.radii.new_tensor([radius])])
        self.labels.append(label)
        return len(self.labels) - 1

    def _nearest(self, key: Tensor) -> tuple[int, float]:
        distances = (self.keys - key).norm(dim=1)
        nearest = int(distances.argmin())
        return nearest, float(distances[nearest])

    def _forget(self, key: Tensor) -> None:
        """Remove rows with this very key: those of an earlier edit of the same prompt."""
        stay = ((self.keys - key).norm(dim=1) > SAME * key.norm()).tolist()
        self.keys, self.values, self.radii = (tensor[stay] for tensor in (self.keys, self.values, self.radii))
        self.labels = [label for label, stays in zip(self.labels, stay, strict=True) if stays]

    def why(self, prompt: str) -> str:
        if not self.labels:
            return "no edit yet"
        nearest, distance = self._nearest(self._read_keys(*self.encode([prompt]))[0])
        radius = self.radii[nearest]
        answers = "its value" if distance <= radius else "the base"
        return f"the nearest key is {distance:.3f} away, its radius {float(radius):.3f}: {answers} answers"

    def hooked_modules(self) -> list[nn.Module]:
        return [self.layer.projection]

    def register_hooks(self) -> list[Any]:
        note = self.model.base_model.register_forward_pre_hook(self._note_positions, with_kwargs=True)
        return [note, *super().register_hooks()]

    def _note_positions(self, _model: nn.Module, _args: Any, options: dict[str, Any]) -> None:
        if (choice := self.current_decision()) is not None:
            choice.positions = options.get("position_ids")

    def _read_keys(self, ids: Tensor, mask: Tensor) -> Tensor:
        return read_keys(self.model, self.layer.down_proj, ids, mask)

    def decide(self, ids: Tensor, mask: Tensor) -> _Choice:
        lengths = mask.sum(dim=1)
        if not self.labels:
            return _Choice(torch.full((len(ids),), BASE), self.values, lengths)
        distances = (self._read_keys(ids, mask)[:, None] - self.keys).norm(dim=2)
        nearest = distances.argmin(dim=1)
        within = distances.gather(1, nearest[:, None])[:, 0] <= self.radii[nearest]
        return _Choice(torch.where(within, nearest, BASE), self.values, lengths)

    def edited_output(self, _index: int, _hidden: Tensor, output: Tensor, choice: _Choice) -> Tensor | None:
        if bool((choice.rows == BASE).all()):
            return None
        rows, tokens, _d = output.shape
        chosen = per_row(choice.rows.to(output.device), rows)
        positions = torch.arange(tokens, device=output.device) if choice.positions is None else choice.positions
        in_prompt = positions.expand(rows, tokens) < per_row(choice.lengths.to(output.device), rows)[:, None]
        replaced = in_prompt & (chosen != BASE)[:, None]
        values = choice.values[chosen.clamp(min=0)].to(output.dtype)
        return torch.where(replaced[..., None], values[:, None], output)

    def state(self) -> dict[str, Tensor]:
        tensors = {"keys": self.keys, "values": self.values, "radii": self.radii}
        return tensors | {"labels": pack_labels(self.labels), "random": self._random.get_state()}

    def load(self, state: dict[str, Tensor]) -> None:
        count, (d, h) = len(state["labels"]), self.layer.projection_shape
        shapes = {"keys": (count, h), "values": (count, d), "radii": (count,)}
        self.keys, self.values, self.radii = self.loaded(state, shapes)
        self.labels = unpack_labels(state["labels"])
        self._random.set_state(state["random"].cpu())
