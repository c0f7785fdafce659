"""SERAC (Mitchell et al. 2022, "Memory-Based Model Editing at Scale"): a cache of edits, a classifier of what is in
their scope, and a counterfactual model that answers what is, with the edit in front of it.

Nothing of the base is changed, and no edit is learned: what is trained is trained once, before the first.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from scen_cli.baselines.counterfactual_model import copied, trained_counterfactual
from scen_cli.baselines.method import Method, MethodContext, Settings
from scen_cli.baselines.retrieval_base import RetrievalMethod
from scen_cli.baselines.scope_classifier import trained_projection, within_scope
from scen_cli.errors import UsageError


class SeracSettings(Settings):
    """The threshold is SCEN's paper's (SERAC's own: 0.5); `lr` and `mini_batch` the authors'. The classifier is not
    theirs, nor are its numbers."""

    threshold: float = Field(0.6, gt=0, lt=1, description="the least p at which a prompt is in an edit's scope")
    width: int = Field(64, ge=1, description="of the classifier's embedding")
    classifier_lr: float = Field(3e-3, gt=0, description="Adam's rate for the classifier")
    classifier_steps: int = Field(100, ge=1, description="Adam steps of the classifier, each on all pairs")
    layers: int | None = Field(None, ge=1, description="last decoder layers that are fine-tuned; none: all")
    lr: float = Field(1e-5, gt=0, description="Adam's rate for the counterfactual model")
    steps: int = Field(1000, ge=1, description="Adam steps of the counterfactual model")
    mini_batch: int = Field(10, ge=1, description="prompts in a step, each behind its edit")


class Serac(RetrievalMethod):
    """`edits` and what is embedded of their prompts, `vectors` (n, width); `projection` (width, h) embeds, and
    `counterfactual` answers."""

    name = "serac"
    settings_type: ClassVar[type[Settings]] = SeracSettings
    settings: SeracSettings

    def __init__(self, given: MethodContext, settings: SeracSettings) -> None:
        super().__init__(given, settings, settings.width)
        stem, count = self.layer.down_proj_name.partition(f".{self.layer.index}.")[0], len(self.layer.layers)
        last = tuple(f"{stem}.{index}." for index in range(count - (settings.layers or count), count))
        self.trained = [name for name, _one in self.model.named_parameters() if name.startswith(last)]
        self.projection = torch.empty(settings.width, self.layer.ffn_width, device=self.base.device)
        self.counterfactual: PreTrainedModel = self.model  # until it is trained, or loaded

    def prepare(self) -> None:
        given, settings = self.given, self.settings
        kept = ("serac", self.layer.index, settings.model_copy(update={"threshold": None}))
        if kept not in given.kept:
            if not given.development or not any(answer for _prompt, answer in given.unedited):
                raise UsageError("SERAC is trained with development edits and unedited prompts: give some of both")
            sizes = settings.steps, settings.lr, settings.mini_batch
            given.kept[kept] = self._projection(), trained_counterfactual(given, self.trained, *sizes)
        self.projection, self.counterfactual = given.kept[kept]

    def embedded(self, states: Tensor) -> Tensor:
        return states @ self.projection.T

    def found(self, vectors: Tensor) -> list[int | None]:
        p, nearest = within_scope(vectors, self.vectors).max(dim=1)
        pairs = zip(nearest.tolist(), p.tolist(), strict=True)
        return [place if one >= self.settings.threshold else None for place, one in pairs]

    @property
    def reader(self) -> PreTrainedModel:
        return self.counterfactual

    def _projection(self) -> Tensor:
        config, known = self.settings, self.given.development
        texts = [(row, text) for row, edit in enumerate(known) for text in (edit.prompt, *edit.rephrases)]
        texts += [(-1, prompt) for prompt, _answer in self.given.unedited]
        owner = torch.tensor([row for row, _text in texts], device=self.base.device)
        edits, queries = self.states([edit.prompt for edit in known]), self.states([text for _row, text in texts])
        return trained_projection(
            edits, queries, owner, config.width, config.classifier_steps, config.classifier_lr, self.given.seed
        )

    def _weights(self) -> dict[str, Tensor]:
        parameters = dict(self.counterfactual.named_parameters())
        return {name: parameters[name].detach() for name in self.trained}

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"projection": self.projection} | self._weights()

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.projection = state["projection"].to(self.base.device)
        self.counterfactual = copied(self.counterfactual, self.trained)  # the one that is kept is others' too
        for name, one in self._weights().items():
            one.copy_(state[name])


METHODS: list[type[Method]] = [Serac]
