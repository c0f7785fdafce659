"""GRACE (Hartvigsen et al. 2023): a codebook of keys and values at one layer.

A key is the input of the layer's `down_proj` at the prompt's last token, a value what stands there in place of its
output. A prompt within a key's radius gets the key's value at all its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from scen_cli.baselines.method import HookMethod, Method, MethodContext, Settings, attached, per_row
from scen_cli.baselines.training_examples import Examples
from scen_cli.data.records import EditRecord
from scen_cli.model.ffn import find_layer
from scen_cli.model.keys import read_keys
from scen_cli.model.routing import BASE

SAME = 1e-4  # of their length: keys that are nearer are of one prompt
APART = 1e-5  # by which two keys of different labels keep off each other


class GraceSettings(Settings):
    """SCEN's paper: 10 steps, radius 3.0. (GRACE's own: 100 steps, radius 1.0.)"""

    lr: float = Field(1.0, gt=0, description="Adam's rate for a value")
    steps: int = Field(10, ge=1, description="Adam steps for a value")
    radius: float = Field(3.0, gt=0, description="a new key's radius, in the base's own units")


@dataclass
class _Replaced:
    """Which value each sequence has (rows,), and the values (n, d)."""

    choice: Tensor
    values: Tensor


class Grace(HookMethod):
    """`keys` (n, h), `values` (n, d) and `radii` (n,), and the label that each key stands for."""

    name = "grace"
    settings_type: ClassVar[type[Settings]] = GraceSettings
    settings: GraceSettings

    def __init__(self, given: MethodContext, settings: GraceSettings) -> None:
        super().__init__(given, settings)
        self.layer = find_layer(self.model, self.given.layer)
        d, h = self.layer.projection_shape
        self.keys, self.values = (torch.empty(0, width, device=self.base.device) for width in (h, d))
        self.radii = torch.empty(0, device=self.base.device)
        self.labels: list[tuple[int, ...]] = []
        self._random = torch.Generator().manual_seed(self.given.seed)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        with attached(self):
            for edit in edits:
                self._fit(edit)

    def _fit(self, edit: EditRecord) -> None:
        examples = Examples.of(self.template, [(edit.prompt, edit.target)], self.base.device)
        key = self._read(*examples.prompts)[0]
        row = self.add(key, tuple(self.template.target_ids(edit.prompt, edit.target)))
        value = self.values[row : row + 1].clone().requires_grad_()
        optimizer = torch.optim.Adam([value], lr=self.settings.lr)
        for _ in range(self.settings.steps):
            with self.carrying(examples.lengths, _Replaced(torch.tensor([0]), value)):
                logits = self.model(input_ids=examples.ids, use_cache=False).logits
            optimizer.zero_grad()
            examples.losses(logits).sum().backward()
            optimizer.step()
        self.values[row] = value.detach()[0]

    def add(self, key: Tensor, label: tuple[int, ...]) -> int:
        """Make room for an edit in the codebook; returns the row whose value is to be learned."""
        radius = self.settings.radius
        self._forget(key)
        if len(self.keys):
            distances = (self.keys - key).norm(dim=1)
            nearest = int(distances.argmin())
            distance = float(distances[nearest])
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

    def _forget(self, key: Tensor) -> None:
        """Rows of this very key: of an edit that the new one takes the place of."""
        stay = ((self.keys - key).norm(dim=1) > SAME * key.norm()).tolist()
        self.keys, self.values, self.radii = (one[stay] for one in (self.keys, self.values, self.radii))
        self.labels = [label for label, stays in zip(self.labels, stay, strict=True) if stays]

    def why(self, prompt: str) -> str:
        if not self.labels:
            return "no edit yet"
        distances = (self._read(*self.encode([prompt])) - self.keys).norm(dim=1)
        nearest = int(distances.argmin())
        told = f"the nearest key is {float(distances[nearest]):.3f} away, its radius {float(self.radii[nearest]):.3f}"
        return f"{told}: {'its value' if distances[nearest] <= self.radii[nearest] else 'the base'} answers"

    def hooks(self) -> list[Any]:
        return [self.layer.projection.register_forward_hook(self._replace)]

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        return read_keys(self.model, self.layer.down_proj, ids, mask)

    def decide(self, ids: Tensor, mask: Tensor) -> _Replaced:
        if not self.labels:
            return _Replaced(torch.full((len(ids),), BASE), self.values)
        distances = (self._read(ids, mask)[:, None] - self.keys).norm(dim=2)
        nearest = distances.argmin(dim=1)
        within = distances.gather(1, nearest[:, None])[:, 0] <= self.radii[nearest]
        return _Replaced(torch.where(within, nearest, BASE), self.values)

    def _replace(self, _module: Any, _args: Any, output: Tensor) -> Tensor | None:
        under_way = self.under_way()
        if under_way is None or bool((under_way.decided.choice == BASE).all()):
            return None
        rows, tokens, _d = output.shape
        choice = per_row(under_way.decided.choice.to(output.device), rows)
        positions = under_way.positions
        if positions is None:
            positions = torch.arange(tokens, device=output.device)
        of_prompt = positions.expand(rows, tokens) < per_row(under_way.lengths.to(output.device), rows)[:, None]
        replaced = of_prompt & (choice != BASE)[:, None]
        values = under_way.decided.values[choice.clamp(min=0)].to(output.dtype)
        return torch.where(replaced[..., None], values[:, None], output)

    def state(self) -> dict[str, Tensor]:
        width = max(map(len, self.labels), default=0)
        labels = torch.tensor([[*label, *[-1] * (width - len(label))] for label in self.labels], dtype=torch.long)
        return {
            "keys": self.keys,
            "values": self.values,
            "radii": self.radii,
            "labels": labels.reshape(len(self.labels), width),
            "random": self._random.get_state(),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        count, (d, h) = len(state["labels"]), self.layer.projection_shape
        shapes = [tuple(state[name].shape) for name in ("keys", "values", "radii")]
        if shapes != [(count, h), (count, d), (count,)]:
            raise ValueError(f"its tensors have shapes {shapes}")
        self.keys, self.values, self.radii = (state[name].to(self.base.device) for name in ("keys", "values", "radii"))
        self.labels = [tuple(token for token in label if token >= 0) for label in state["labels"].tolist()]
        self._random.set_state(state["random"].cpu())


METHODS: list[type[Method]] = [Grace]
