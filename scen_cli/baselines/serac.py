"""SERAC (Mitchell et al. 2022, "Memory-Based Model Editing at Scale"): a cache of edits, a scope classifier, and a
counterfactual model that answers prompts in scope, with the edit prepended.

The base does not change. Classifier and counterfactual model are trained once, before the first edit.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.counterfactual_model import copy_parameters, train_counterfactual
from scen_cli.baselines.method import Settings
from scen_cli.baselines.retrieval_method import RetrievalMethod
from scen_cli.baselines.scope_classifier import scope_probability, train_projection


class SeracSettings(Settings):
    """The threshold is SCEN's paper's (SERAC's own: 0.5); `lr` and `mini_batch` are the authors'. The classifier's
    settings are not theirs."""

    threshold: float = Field(0.6, gt=0, lt=1, description="least p at which a prompt is in an edit's scope")
    width: int = Field(64, ge=1, description="width of the classifier's embedding")
    classifier_lr: float = Field(3e-3, gt=0, description="Adam's learning rate for the classifier")
    classifier_steps: int = Field(100, ge=1, description="Adam steps of the classifier, each on all pairs")
    layers: int | None = Field(None, ge=1, description="last decoder layers that are fine-tuned; none: all")
    lr: float = Field(1e-5, gt=0, description="Adam's learning rate for the counterfactual model")
    steps: int = Field(1000, ge=1, description="Adam steps of the counterfactual model")
    mini_batch: int = Field(10, ge=1, description="prompts in a step, each after its edit")


class Serac(RetrievalMethod):
    """`projection` (width, h) embeds keys; `counterfactual` answers. `trained` names its own parameters."""

    name = "serac"
    settings: SeracSettings

    def __init__(self, context: MethodContext, settings: SeracSettings) -> None:
        super().__init__(context, settings, settings.threshold, settings.width)
        stem, count = self.layer.down_proj_name.partition(f".{self.layer.index}.")[0], len(self.layer.layers)
        last = tuple(f"{stem}.{index}." for index in range(count - (settings.layers or count), count))
        self.trained = [name for name, _parameter in self.model.named_parameters() if name.startswith(last)]
        self.projection = torch.empty(settings.width, self.layer.ffn_width, device=self.base.device)
        self.counterfactual: PreTrainedModel = self.model  # until it is trained or loaded

    def prepare(self) -> None:
        key = ("serac", self.layer.index, self.settings.model_copy(update={"threshold": None}))
        self.projection, self.counterfactual = self.context.cached(key, self._train)

    def _train(self) -> tuple[Tensor, PreTrainedModel]:
        self.context.check_training_data("SERAC")
        config, edits = self.settings, self.context.development
        texts = [(row, text) for row, edit in enumerate(edits) for text in (edit.prompt, *edit.rephrases)]
        texts += [(-1, prompt) for prompt, _answer in self.context.unedited]
        scope = torch.tensor([row for row, _text in texts], device=self.base.device)
        edit_keys = self.mean_keys(self.layer, [edit.prompt for edit in edits])
        query_keys = self.mean_keys(self.layer, [text for _row, text in texts])
        sizes = config.width, config.classifier_steps, config.classifier_lr, self.context.seed
        projection = train_projection(edit_keys, query_keys, scope, *sizes)
        return projection, train_counterfactual(self.context, self.trained, config.steps, config.lr, config.mini_batch)

    def embed(self, keys: Tensor) -> Tensor:
        return keys @ self.projection.T

    def score(self, vectors: Tensor) -> Tensor:
        return scope_probability(vectors, self.vectors)

    @property
    def reader(self) -> PreTrainedModel:
        return self.counterfactual

    def _weights(self) -> dict[str, Tensor]:
        parameters = dict(self.counterfactual.named_parameters())
        return {name: parameters[name].detach() for name in self.trained}

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"projection": self.projection} | self._weights()

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        [self.projection] = self.loaded(state, {"projection": self.projection.shape})
        self.counterfactual = copy_parameters(self.counterfactual, self.trained)  # the cached one belongs to others too
        for name, weight in self._weights().items():
            weight.copy_(state[name])
