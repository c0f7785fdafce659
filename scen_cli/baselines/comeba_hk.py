"""COMEBA-HK (Li et al. 2024, "Consecutive Batch Model Editing with HooK Layers"): edits in consecutive batches.

A hook layer is a copy of a layer's `down_proj`; edits change the copy only. Here it is stored as its difference from
the base's. While a batch is written, the hook's output always counts (a *temporary* hook). Later it counts only at
tokens where it differs from the base's output much more than at the prompt's other tokens (a *validated* hook): where
the z-score of |O_t - P_t| is at least alpha. Mean and deviation come from the prompt and hold for generated tokens too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.context import MethodContext, run_texts
from scen_cli.baselines.hook_method import HookMethod, per_row
from scen_cli.baselines.memit import ClosedFormMethod, ClosedFormSettings, EditContexts
from scen_cli.baselines.method import attached
from scen_cli.data.records import EditRecord

FIRST_ALPHA = 2.2
ROUNDING = 1e-3  # by which rounding may lower a z-score


class ComebaSettings(ClosedFormSettings):
    """The paper's: batches of 30, lambda 15000 (GPT-J, h = 16384), alpha from 2.2 downwards."""

    batch: int | None = Field(30, ge=1, description="edits fitted together; none: all of them")
    alpha: float = Field(FIRST_ALPHA, description="z-score at which a hook's output counts, before the first edit")


@dataclass
class Spread:
    """Statistics of one layer over a prompt: mean and deviation (rows, 1) of |O_t - P_t|."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, distances: Tensor, mask: Tensor) -> Spread:
        """Of distances (rows, tokens) at real tokens, by the attention mask."""
        real = mask.to(distances.dtype)
        count = real.sum(dim=1, keepdim=True)
        mean = (distances * real).sum(dim=1, keepdim=True) / count
        squares = ((distances - mean) ** 2 * real).sum(dim=1, keepdim=True)
        return cls(mean, (squares / (count - 1).clamp(min=1)).sqrt())

    def scores(self, distances: Tensor) -> Tensor:
        """z-scores (rows, tokens); -inf for a prompt whose distances are all equal."""
        mean, deviation = (per_row(value, len(distances)) for value in (self.mean, self.deviation))
        return torch.where(deviation > 0, (distances - mean) / deviation.clamp(min=1e-30), -torch.inf)


@dataclass
class _PromptPass:
    """A pass over whole prompts in which each layer computes its statistics, and uses them at once."""

    mask: Tensor
    spreads: dict[int, Spread] = field(default_factory=dict)
    highest: dict[int, Tensor] = field(default_factory=dict)  # the prompts' highest z-scores (rows,), by layer


class ComebaHK(ClosedFormMethod, HookMethod):
    """One of `deltas` (d, h), of `c` (h, h) and of `alphas` per layer: their size does not grow with the edits."""

    name = "comeba-hk"
    settings: ComebaSettings

    def __init__(self, context: MethodContext, settings: ComebaSettings) -> None:
        super().__init__(context, settings)
        self.layers = self.context.layers(settings.layers)
        self.deltas = [torch.zeros(layer.projection_shape, device=self.base.device) for layer in self.layers]
        self.alphas = [settings.alpha] * len(self.layers)
        self.validated = [True] * len(self.layers)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        contexts = self.contexts(edits)
        with attached(self):
            try:
                self._write(edits, contexts)
            finally:
                self.validated = [True] * len(self.layers)
            self._lower_alphas(edits)

    def _write(self, edits: Sequence[EditRecord], contexts: EditContexts) -> None:
        """Find values with validated hooks; then write layer by layer, while this and later hooks are temporary."""
        values = self.find_values(contexts, edits)
        self.validated = [False] * len(self.layers)
        for index, c in enumerate(self.c):
            with self.answering(*contexts.examples.prompts):
                keys, delta = self.layer_update(index, contexts, values)
            self.c[index] = c + keys.T @ keys
            self.deltas[index] = self.deltas[index] + delta.float()
            self.validated[index] = True

    def _lower_alphas(self, edits: Sequence[EditRecord]) -> None:
        """Lower alphas until every layer's hook counts at a token of each of these edits' prompts."""
        for index, alpha in enumerate(self.alphas):  # a layer's scores depend on the hooks of the layers below
            highest = self._read_prompts(*self.encode([edit.prompt for edit in edits])).highest[index]
            finite = highest[highest.isfinite()]
            self.alphas[index] = min(alpha, float(finite.amin()) - ROUNDING if len(finite) else torch.inf)

    def why(self, prompt: str) -> str:
        highest = self._read_prompts(*self.encode([prompt])).highest
        scores = [float(highest[index][0]) for index in range(len(self.layers))]
        rows = list(zip(self.layers, scores, self.alphas, strict=True))
        parts = [f"layer {layer.index}: highest z-score {z:.3f}, alpha {alpha:.3f}" for layer, z, alpha in rows]
        counts = any(z >= alpha for _layer, z, alpha in rows)
        return "; ".join([*parts, "the hooks count" if counts else "the base answers"])

    def hooked_modules(self) -> list[nn.Module]:
        return [layer.down_proj for layer in self.layers]

    def decide(self, ids: Tensor, mask: Tensor) -> dict[int, Spread]:
        return self._read_prompts(ids, mask).spreads

    @torch.no_grad()
    def _read_prompts(self, ids: Tensor, mask: Tensor) -> _PromptPass:
        found = _PromptPass(mask)
        with self.following(found):
            run_texts(self.model, ids, mask)
        return found

    def edited_output(self, index: int, hidden: Tensor, output: Tensor, decision: Any) -> Tensor:
        added = nn.functional.linear(hidden.float(), self.deltas[index])
        if self.validated[index]:
            counts = self._counts(index, added.norm(dim=-1), decision)
        else:
            counts = torch.ones_like(added[..., 0], dtype=torch.bool)
        # Where a hook does not count, the base's output must stay the same to the bit.
        return torch.where(counts[..., None], (output.float() + added).to(output.dtype), output)

    def _counts(self, index: int, distances: Tensor, decision: _PromptPass | dict[int, Spread]) -> Tensor:
        """Whether (rows, tokens) a validated hook's output counts."""
        if isinstance(decision, _PromptPass):
            spread = decision.spreads[index] = Spread.of(distances, decision.mask)
            scores = spread.scores(distances)
            decision.highest[index] = scores.masked_fill(decision.mask == 0, -torch.inf).amax(dim=1)
        else:
            scores = decision[index].scores(distances)
        return scores >= self.alphas[index]

    def state(self) -> dict[str, Tensor]:
        hooks = {f"{layer.index}.hook": delta for layer, delta in zip(self.layers, self.deltas, strict=True)}
        return super().state() | hooks | {"alphas": torch.tensor(self.alphas, dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        [alphas] = self.loaded(state, {"alphas": (len(self.layers),)})
        deltas = self.loaded(state, {f"{layer.index}.hook": layer.projection_shape for layer in self.layers})
        self.alphas, self.deltas = alphas.tolist(), deltas
