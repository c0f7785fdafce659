"""T-Patcher (Huang et al. 2023, "Transformer-Patcher: One Mistake Worth One Neuron"): neurons beside the last FFN.

A patch is relu(x k + b) v, added to what the last decoder layer's FFN gives for x, its input. It is trained to be
active where its own answer is predicted, and below zero wherever else an answer is: there it adds nothing at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.closed_form_memory import recorded
from scen_cli.baselines.method import HookMethod, Method, MethodContext, Settings, attached
from scen_cli.baselines.training_examples import IGNORED, Examples
from scen_cli.data.records import EditRecord
from scen_cli.model.ffn import LOCATIONS, find_layer

AT_ONCE = 64  # texts run together
HARDEST_OWN = 5  # of its own queries that a patch is trained to be active at
SAME = 1e-4  # two queries nearer than this share of their length are of one text


class TPatcherSettings(Settings):
    """Defaults of the authors' code, but for `per`: they have a patch for each wrong token, SCEN's paper one an edit.

    One patch is one half-space and one direction for all of an answer's tokens. The queries of its last tokens lie
    near those of other answers, which the memory losses keep out: it takes a large `activation` to hold them."""

    per: str = Field("sample", pattern="^(sample|token)$", description="one patch an edit, or one for each wrong token")
    lr: float = Field(1e-2, gt=0, description="Adam's rate")
    steps: int = Field(2000, ge=1, description="Adam steps on an edit, at most")
    activation: float = Field(1.0, ge=0, description="weight of the activation loss")
    memory: float = Field(5.0, ge=0, description="weight of the two memory losses")
    margin: float = Field(3.0, ge=0, description="how far memories are kept below zero, and below own queries")
    hardest: int = Field(1000, ge=1, description="memories that the memory losses are the mean over")
    stop: float = Field(0.1, ge=0, description="training ends at this activation loss, if no more is wrong")


@dataclass(frozen=True)
class Patches:
    """`keys` (n, d), `biases` (n,) and `values` (n, d), float32."""

    keys: Tensor
    biases: Tensor
    values: Tensor

    def activation(self, queries: Tensor) -> Tensor:
        """What (rows, n) enters the ReLU for queries (rows, d)."""
        return queries.float() @ self.keys.T + self.biases

    def output(self, queries: Tensor) -> Tensor:
        return self.activation(queries).relu() @ self.values

    def __add__(self, more: Patches) -> Patches:
        return Patches(*(torch.cat(both) for both in zip(self.tensors(), more.tensors(), strict=True)))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.keys, self.biases, self.values


class TPatcher(HookMethod):
    """`patches`, and `queries` (rows, d) of all edits there were: what entered the last FFN where it predicted them."""

    name = "t-patcher"
    settings_type: ClassVar[type[Settings]] = TPatcherSettings
    settings: TPatcherSettings

    def __init__(self, given: MethodContext, settings: TPatcherSettings) -> None:
        super().__init__(given, settings)
        layers = getattr(self.model.base_model, LOCATIONS[self.model.config.model_type].layers)
        last = find_layer(self.model, len(layers) - 1 if settings.layer is None else settings.layer)
        self.ffn = self.model.get_submodule(last.down_proj_name.rpartition(".")[0])
        d, device = last.projection_shape[0], self.base.device
        self.patches = Patches(*(torch.empty(shape, device=device) for shape in ((0, d), 0, (0, d))))
        self.queries = torch.empty(0, d, device=device)
        self._kept = ("answer queries", last.index)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        with attached(self):
            for edit in edits:
                self._fit(edit)

    def _fit(self, edit: EditRecord) -> None:
        examples = Examples.of(self.template, [(edit.prompt, edit.target)], self.base.device)
        queries = self._read([(edit.prompt, edit.target)])
        memory = self._memory(queries)
        self.queries = torch.cat([self.queries, queries])
        with torch.no_grad():
            wrong = self._run(examples, self.patches).argmax(dim=-1) != examples.labels
        wrong = wrong[examples.labels != IGNORED]
        if not wrong.any():
            return  # no mistake, no neuron
        own = queries[None] if self.settings.per == "sample" else queries[wrong][:, None]
        self.patches += self._trained(examples, own, memory)

    def _trained(self, examples: Examples, own: Tensor, memory: Tensor) -> Patches:
        """New patches, of which each is to be active at its `own` queries (n, queries, d) and at no `memory` (m, d)."""
        config = self.settings
        middle = own.mean(dim=1)
        start = (middle / (middle**2).sum(dim=1, keepdim=True), own.new_zeros(len(own)), torch.zeros_like(middle))
        new = Patches(*(one.requires_grad_() for one in start))
        optimizer = torch.optim.Adam(new.tensors(), lr=config.lr)
        for _ in range(config.steps):
            logits = self._run(examples, self.patches + new)
            active = (own @ new.keys[..., None])[..., 0] + new.biases[:, None]
            others = new.activation(memory)
            activation = _hardest(-active, HARDEST_OWN)
            loss = examples.losses(logits).mean() + config.activation * activation
            for above in (others, others - active.amin(dim=1)):
                loss = loss + config.memory * _hardest(above + config.margin, config.hardest)
            if bool(examples.learned(logits).all()) and activation < config.stop and not (others > 0).any():
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return Patches(*(one.detach() for one in new.tensors()))

    def _memory(self, queries: Tensor) -> Tensor:
        """Queries (m, d) at which a new patch is to be still: of unedited prompts and of earlier edits, but for those
        that an edit of the same prompt takes the place of."""
        apart = torch.cdist(self.queries, queries) > SAME * queries.norm(dim=1)
        return torch.cat([self._unedited(), self.queries[apart.all(dim=1)]])

    def _unedited(self) -> Tensor:
        """Queries (m, d) of the base's answers to unedited prompts, read when first needed."""
        kept = self.given.kept
        if self._kept not in kept:
            with attached(self, False):
                known = [pair for pair in self.given.unedited if pair[1]]
                kept[self._kept] = torch.cat([self.queries[:0], *([self._read(known)] if known else [])])
        queries: Tensor = kept[self._kept]
        return queries

    @torch.no_grad()
    def _read(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """What (rows, d), float32, enters the FFN at the tokens that predict the targets."""
        found = []
        for start in range(0, len(pairs), AT_ONCE):
            examples = Examples.of(self.template, pairs[start : start + AT_ONCE], self.base.device)
            with recorded(self.ffn) as seen:
                self.model(input_ids=examples.ids, use_cache=False)
            found.append(seen[self.ffn][0][examples.labels != IGNORED].float())
        return torch.cat(found)

    def _run(self, examples: Examples, patches: Patches) -> Tensor:
        with self.carrying(examples.lengths, patches):
            logits: Tensor = self.model(input_ids=examples.ids, use_cache=False).logits
        return logits

    def hooks(self) -> list[Any]:
        return [self.ffn.register_forward_hook(self._add)]

    def decide(self, ids: Tensor, mask: Tensor) -> Patches:
        return self.patches  # all of them, for every prompt: they decide by themselves

    def _add(self, _module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        under_way = self.under_way()
        if under_way is None:
            return None
        return (output.float() + under_way.decided.output(args[0])).to(output.dtype)

    def state(self) -> dict[str, Tensor]:
        return {**vars(self.patches), "queries": self.queries}

    def load(self, state: dict[str, Tensor]) -> None:
        self.patches = Patches(*(state[name].to(self.base.device) for name in ("keys", "biases", "values")))
        self.queries = state["queries"].to(self.base.device)


def _hardest(excess: Tensor, count: int) -> Tensor:
    """The mean of exp over the greatest `count` numbers of all."""
    each = excess.flatten()
    return each.topk(min(count, len(each))).values.exp().sum() / max(min(count, len(each)), 1)


METHODS: list[type[Method]] = [TPatcher]
