"""T-Patcher (Huang et al. 2023, "Transformer-Patcher: One Mistake Worth One Neuron"): neurons added to the last FFN.

A patch adds relu(x k + b) v to the output of the last decoder layer's FFN for its input x. It is trained to be active
where its own answer is predicted, and below zero where other answers are: there it adds exactly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.context import Examples, MethodContext, batched, run_texts, take_step
from scen_cli.baselines.hook_method import HookMethod, recorded
from scen_cli.baselines.melo import SAME
from scen_cli.baselines.method import Settings, attached
from scen_cli.data.records import EditRecord
from scen_cli.model.ffn import ARCHITECTURES, find_layer

HARDEST_OWN = 5  # of its own queries that a patch is trained to be active at


class TPatcherSettings(Settings):
    """Defaults of the authors' code, except `per`: they add a patch per wrong token, SCEN's paper one per edit.

    One patch is one half-space and one direction for all tokens of an answer. The queries of its last tokens lie near
    those of other answers, which the memory losses exclude: only a large `activation` keeps them active."""

    per: str = Field("sample", pattern="^(sample|token)$", description="one patch per edit, or per wrong token")
    lr: float = Field(1e-2, gt=0, description="Adam's learning rate")
    steps: int = Field(2000, ge=1, description="most Adam steps on an edit")
    activation: float = Field(1.0, ge=0, description="weight of the activation loss")
    memory: float = Field(5.0, ge=0, description="weight of the two memory losses")
    margin: float = Field(3.0, ge=0, description="margin of memories below zero, and below own queries")
    hardest: int = Field(1000, ge=1, description="memories that the memory losses average over")
    stop: float = Field(0.1, ge=0, description="activation loss at which training ends if the answer is right")


class Patches(NamedTuple):
    """`keys` (n, d), `biases` (n,) and `values` (n, d), float32."""

    keys: Tensor
    biases: Tensor
    values: Tensor

    def activation(self, queries: Tensor) -> Tensor:
        """The ReLU's input (rows, n) for queries (rows, d)."""
        return queries.float() @ self.keys.T + self.biases

    def output(self, queries: Tensor) -> Tensor:
        return self.activation(queries).relu() @ self.values

    def joined(self, more: Patches) -> Patches:
        return Patches(*map(torch.cat, zip(self, more, strict=True)))


class TPatcher(HookMethod):
    """`patches`, and `queries` (rows, d): the inputs of the last FFN where it predicted the edits' answers."""

    name = "t-patcher"
    settings: TPatcherSettings

    def __init__(self, context: MethodContext, settings: TPatcherSettings) -> None:
        super().__init__(context, settings)
        layers = getattr(self.model.base_model, ARCHITECTURES[self.model.config.model_type].layers)
        self.layer = find_layer(self.model, len(layers) - 1 if settings.layer is None else settings.layer)
        self.ffn = self.model.get_submodule(self.layer.down_proj_name.rpartition(".")[0])
        d, device = self.layer.projection_shape[0], self.base.device
        self.patches = Patches(*(torch.empty(shape, device=device) for shape in ((0, d), 0, (0, d))))
        self.queries = torch.empty(0, d, device=device)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        with attached(self):
            for edit in edits:
                self._fit(edit)

    def _fit(self, edit: EditRecord) -> None:
        examples = self.examples([edit])
        queries = self._read_queries([(edit.prompt, edit.target)])
        memory = self._memory(queries)
        self.queries = torch.cat([self.queries, queries])
        with torch.no_grad():
            wrong = self._run(examples, self.patches).argmax(dim=-1) != examples.labels
        wrong = wrong[examples.scored]
        if not wrong.any():
            return  # no mistake, no neuron
        own = queries[None] if self.settings.per == "sample" else queries[wrong][:, None]
        self.patches = self.patches.joined(self._train(examples, own, memory))

    def _train(self, examples: Examples, own: Tensor, memory: Tensor) -> Patches:
        """Train n patches, each active at its `own` queries (n, queries, d) and at no query of `memory` (m, d)."""
        config = self.settings
        middle = own.mean(dim=1)
        start = (middle / (middle**2).sum(dim=1, keepdim=True), own.new_zeros(len(own)), torch.zeros_like(middle))
        new = Patches(*(tensor.requires_grad_() for tensor in start))
        optimizer = torch.optim.Adam(new, lr=config.lr)
        for _ in range(config.steps):
            logits = self._run(examples, self.patches.joined(new))
            active = (own @ new.keys[..., None])[..., 0] + new.biases[:, None]
            others = new.activation(memory)
            activation = _hardest(-active, HARDEST_OWN)
            loss = examples.losses(logits).mean() + config.activation * activation
            for excess in (others, others - active.amin(dim=1)):
                loss = loss + config.memory * _hardest(excess + config.margin, config.hardest)
            if bool(examples.learned(logits).all()) and activation < config.stop and not (others > 0).any():
                break
            take_step(optimizer, loss)
        return Patches(*(tensor.detach() for tensor in new))

    def _memory(self, queries: Tensor) -> Tensor:
        """The queries (m, d) where a new patch must be inactive: of unedited prompts, and of earlier edits except those
        of the same prompt."""
        different = torch.cdist(self.queries, queries) > SAME * queries.norm(dim=1)
        return torch.cat([self._unedited_queries(), self.queries[different.all(dim=1)]])

    def _unedited_queries(self) -> Tensor:
        """Queries (m, d) of the base's answers to unedited prompts."""

        def read() -> Tensor:
            with attached(self, False):
                return self._read_queries(self.context.known_answers)

        return self.context.cached(("answer queries", self.layer.index), read)

    @torch.no_grad()
    def _read_queries(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """The FFN's input (rows, d), float32, at the tokens that predict the targets."""
        queries = [self.queries[:0]]
        for batch in batched(pairs):
            examples = self.context.examples(batch)
            with recorded(self.ffn) as seen:
                run_texts(self.model, examples.ids)
            queries.append(seen[self.ffn][0][examples.scored].float())
        return torch.cat(queries)

    def _run(self, examples: Examples, patches: Patches) -> Tensor:
        with self.following(patches):
            return run_texts(self.model, examples.ids)

    def hooked_modules(self) -> list[nn.Module]:
        return [self.ffn]

    def decide(self, ids: Tensor, mask: Tensor) -> Patches:
        return self.patches  # all of them: each is active or inactive token by token

    def edited_output(self, _index: int, hidden: Tensor, output: Tensor, patches: Patches) -> Tensor:
        return (output.float() + patches.output(hidden)).to(output.dtype)

    def state(self) -> dict[str, Tensor]:
        return {**self.patches._asdict(), "queries": self.queries}

    def load(self, state: dict[str, Tensor]) -> None:
        (n, d), queries = state["keys"].shape, len(state["queries"])
        shapes = {"keys": (n, self.queries.shape[1]), "biases": (n,), "values": (n, d), "queries": (queries, d)}
        *patches, self.queries = self.loaded(state, shapes)
        self.patches = Patches(*patches)


def _hardest(excess: Tensor, count: int) -> Tensor:
    """The mean of exp over the `count` largest numbers."""
    each = excess.flatten()
    count = min(count, len(each))
    return each.topk(count).values.exp().sum() / max(count, 1)
