"""COMEBA-HK (Li et al. 2024): edits in consecutive batches, in hook layers beside the base's own.

A hook layer is a copy of one layer's `down_proj` that alone is written to; here it is kept as what it adds to the
base's. While a batch is learned its output always counts (a *temporary* hook). After that it counts at those tokens
alone where it differs from the base's by far more than at the others (a *validated* hook): by z-scores over the prompt,
whose mean and deviation hold for what follows it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.closed_form_memory import Contexts, second_moment
from scen_cli.baselines.memit import read
from scen_cli.baselines.method import HookMethod, Method, MethodContext, Settings, attached, per_row
from scen_cli.baselines.target_values import ValueSettings, find_values
from scen_cli.data.records import EditRecord
from scen_cli.model.keys import positions_of
from scen_cli.model.ridge_update import ridge_update

START = 2.2  # alpha before the first edit
SURE = 1e-3  # what rounding may take from a z-score


class ComebaSettings(ValueSettings):
    """The paper's: batches of 30, lambda 15000 (GPT-J, h = 16384), alpha from 2.2 downwards."""

    batch: int | None = Field(30, ge=1, description="edits fitted at once; none: all there are")
    known: float = Field(15000, gt=0, description="lambda: the weight of the keys that are known")
    alpha: float = Field(START, description="the z-score from which on a hook's output counts, before the first edit")


@dataclass
class Spread:
    """The prefill's statistics of one layer: mean and deviation (rows, 1) of |O_t - P_t| over a prompt's tokens."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, moves: Tensor, mask: Tensor) -> Spread:
        """Of `moves` (rows, tokens), where `mask` says which tokens are real."""
        real = mask.to(moves.dtype)
        count = real.sum(dim=1, keepdim=True)
        mean = (moves * real).sum(dim=1, keepdim=True) / count
        squares = ((moves - mean) ** 2 * real).sum(dim=1, keepdim=True)
        return cls(mean, (squares / (count - 1).clamp(min=1)).sqrt())

    def scores(self, moves: Tensor) -> Tensor:
        """z (rows, tokens); of a prompt whose moves are all the same none stands out."""
        mean, deviation = (per_row(one, len(moves)) for one in (self.mean, self.deviation))
        return torch.where(deviation > 0, (moves - mean) / deviation.clamp(min=1e-30), -torch.inf)


class _Measuring:
    """A pass over whole prompts: each layer finds its statistics, and goes by them at once."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.spreads: dict[int, Spread] = {}
        self.highest: dict[int, Tensor] = {}


class ComebaHK(HookMethod):
    """`deltas` (d, h), `c` (h, h) and `alphas`, one for each layer: their size does not depend on how many edits."""

    name = "comeba-hk"
    settings_type: ClassVar[type[Settings]] = ComebaSettings
    settings: ComebaSettings

    def __init__(self, given: MethodContext, settings: ComebaSettings) -> None:
        super().__init__(given, settings)
        self.layers = self.given.layers(settings.layers)
        self.c: list[Tensor] = []
        self.deltas = [torch.zeros(one.projection_shape, device=self.base.device) for one in self.layers]
        self.alphas = [settings.alpha] * len(self.layers)
        self.validated = [True] * len(self.layers)

    def prepare(self) -> None:
        self.c = [self.settings.known * one for one in second_moment(self.given, self.layers)]

    def fit(self, edits: Sequence[EditRecord]) -> None:
        config = self.settings
        contexts = Contexts.of(self.given, edits, config.contexts, config.at == "subject")
        with attached(self):
            try:
                self._write(edits, contexts)
            finally:
                self.validated = [True] * len(self.layers)
            self._lower_alphas(edits)

    def _write(self, edits: Sequence[EditRecord], contexts: Contexts) -> None:
        """Find values with the hooks validated; then write them, layer by layer, with those above temporary."""
        last = self.layers[-1]
        values = find_values(self.model, self.template, last, contexts, edits, self.settings, self._texts)
        self.validated = [False] * len(self.layers)
        for number, layer in enumerate(self.layers):
            with self._texts(*contexts.examples.prompts):
                keys, residual = read(self, contexts, layer.down_proj, last.layers[last.index], values)
            delta = ridge_update(self.c[number], keys.T, residual.T / (len(self.layers) - number))
            self.c[number] = self.c[number] + keys.T @ keys
            self.deltas[number] = self.deltas[number] + delta.float()
            self.validated[number] = True

    def _lower_alphas(self, edits: Sequence[EditRecord]) -> None:
        """So far that each of these edits' prompts has a token at which every layer's hook counts."""
        for number in range(len(self.layers)):  # a layer's scores depend on what the layers below let through
            measuring = self._measure(*self.encode([edit.prompt for edit in edits]))
            highest = measuring.highest[number]
            least = float(highest[highest.isfinite()].amin()) - SURE if bool(highest.isfinite().any()) else torch.inf
            self.alphas[number] = min(self.alphas[number], least)

    def why(self, prompt: str) -> str:
        measuring = self._measure(*self.encode([prompt]))
        found = [(layer.index, float(measuring.highest[n][0]), self.alphas[n]) for n, layer in enumerate(self.layers)]
        told = [f"layer {at}: highest z-score {z:.3f}, alpha {alpha:.3f}" for at, z, alpha in found]
        return "; ".join([*told, "the hooks count" if any(z >= alpha for _, z, alpha in found) else "the base answers"])

    def hooks(self) -> list[Any]:
        def hook_of(number: int) -> Any:
            return lambda _module, args, output: self._output(number, args[0], output)

        return [layer.down_proj.register_forward_hook(hook_of(n)) for n, layer in enumerate(self.layers)]

    def decide(self, ids: Tensor, mask: Tensor) -> dict[int, Spread]:
        return self._measure(ids, mask).spreads

    @torch.no_grad()
    def _measure(self, ids: Tensor, mask: Tensor) -> _Measuring:
        measuring = _Measuring(mask)
        with self.carrying(mask.sum(dim=1), measuring):
            self.model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False)
        return measuring

    @contextmanager
    def _texts(self, ids: Tensor, mask: Tensor) -> Iterator[None]:
        """Texts that begin with these prompts, by the hooks as they are now, validated or temporary."""
        with self.carrying(mask.sum(dim=1), self.decide(ids, mask)):
            yield

    def _output(self, number: int, hidden: Tensor, output: Tensor) -> Tensor | None:
        under_way = self.under_way()
        if under_way is None:
            return None
        added = nn.functional.linear(hidden.float(), self.deltas[number])
        if self.validated[number]:
            counts = self._counts(number, added.norm(dim=-1), under_way.decided)
        else:
            counts = torch.ones_like(added[..., 0], dtype=torch.bool)
        # Where a hook does not count the base's output stays as it is to the bit.
        return torch.where(counts[..., None], (output.float() + added).to(output.dtype), output)

    def _counts(self, number: int, moves: Tensor, decided: Any) -> Tensor:
        if isinstance(decided, _Measuring):
            spread = decided.spreads[number] = Spread.of(moves, decided.mask)
            scores = spread.scores(moves)
            decided.highest[number] = scores.masked_fill(decided.mask == 0, -torch.inf).amax(dim=1)
        else:
            scores = decided[number].scores(moves)
        return scores >= self.alphas[number]

    def state(self) -> dict[str, Tensor]:
        named = {"alphas": torch.tensor(self.alphas, dtype=torch.float64)}
        for layer, delta, c in zip(self.layers, self.deltas, self.c, strict=True):
            named |= {f"{layer.index}.hook": delta, f"{layer.index}.c": c}
        return named

    def load(self, state: dict[str, Tensor]) -> None:
        shapes = [(state[f"{one.index}.hook"].shape, state[f"{one.index}.c"].shape) for one in self.layers]
        if shapes != [(one.projection_shape, (one.ffn_width,) * 2) for one in self.layers] or state["alphas"].shape != (
            len(self.layers),
        ):
            raise ValueError(f"its tensors have shapes {shapes}")
        self.alphas = state["alphas"].tolist()
        self.deltas = [state[f"{layer.index}.hook"].to(self.base.device) for layer in self.layers]
        self.c = [state[f"{layer.index}.c"].to(self.base.device) for layer in self.layers]


METHODS: list[type[Method]] = [ComebaHK]
