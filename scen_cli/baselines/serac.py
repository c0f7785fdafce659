"""SERAC (Mitchell et al. 2022, "Memory-Based Model Editing at Scale"): a cache of edits, a scope classifier, and a
counterfactual model that answers prompts in scope, with the edit prepended.

The base does not change. Classifier and counterfactual model are trained once, before the first edit.

The classifier is the authors' embedding classifier: a query is in the scope of an edit with the probability
p = exp(-|f(edit) - f(query)|^2). Here f is a linear map of the base's own keys. The authors' counterfactual model is a
separate small model. No small model shares every base's vocabulary, so here the base's own last layers are fine-tuned
in float32; the copy shares all other parameters with the base.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from scen_cli.baselines.context import MethodContext, take_step
from scen_cli.baselines.method import Settings
from scen_cli.baselines.retrieval_method import RetrievalMethod
from scen_cli.baselines.weight_method import run_with
from scen_cli.model.template import Prompt, SecondTurn

EPSILON = 1e-6  # least argument of a logarithm


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
        return self._train_projection(), self._train_counterfactual()

    def _train_projection(self) -> Tensor:
        """Train f (width, h), float32. Pairs in scope and pairs out of scope have the same total weight."""
        config, records = self.settings, self.context.development
        texts = [(row, text) for row, edit in enumerate(records) for text in (edit.prompt, *edit.rephrases)]
        texts += [(-1, prompt) for prompt, _answer in self.context.unedited]
        edits = self.mean_keys(self.layer, [edit.prompt for edit in records])
        queries = self.mean_keys(self.layer, [text for _row, text in texts])
        scope = torch.tensor([row for row, _text in texts], device=self.base.device)
        in_scope = scope[:, None] == torch.arange(len(edits), device=self.base.device)
        generator = torch.Generator().manual_seed(self.context.seed)
        start = torch.randn(config.width, edits.shape[1], generator=generator).to(edits) / config.width**0.5
        median = squared_distances(queries @ start.T, edits @ start.T).median() + EPSILON
        projection = (start / median.sqrt()).requires_grad_()  # the median pair starts at distance 1
        optimizer = torch.optim.Adam([projection], lr=config.classifier_lr)
        for _ in range(config.classifier_steps):
            distances = squared_distances(queries @ projection.T, edits @ projection.T)
            out_of_scope = -torch.expm1(-distances[~in_scope])
            take_step(optimizer, distances[in_scope].mean() - out_of_scope.clamp(min=EPSILON).log().mean())
        return projection.detach()

    def _train_counterfactual(self) -> PreTrainedModel:
        """Fine-tune a copy of the base. Each step has `mini_batch` prompts in scope and as many out of scope."""
        config = self.settings
        model = copy_parameters(self.model, self.trained)
        parameters = dict(model.named_parameters())
        weights = {name: parameters[name].detach().float().clone().requires_grad_() for name in self.trained}
        optimizer = torch.optim.Adam(weights.values(), lr=config.lr)
        choose = random.Random(self.context.seed)
        known = self.context.known_answers
        for _ in range(config.steps):
            pairs = [pair for _ in range(config.mini_batch) for pair in self._draw_pairs(known, choose)]
            examples = self.context.examples(pairs)
            take_step(optimizer, examples.losses(run_with(model, weights, examples.ids)).mean())
        with torch.no_grad():
            for name, weight in weights.items():
                parameters[name].copy_(weight)
        return model

    def _draw_pairs(self, known: list[tuple[str, str]], choose: random.Random) -> list[tuple[Prompt, str]]:
        """A prompt in the scope of a prepended edit, and a prompt out of scope that keeps the base's answer. Half of
        the edits get another edit's answer, so that the model cannot memorise the answers."""
        edit = choose.choice(self.context.development)
        prepended, prompt = (choose.choice((edit.prompt, *edit.rephrases)) for _ in range(2))
        target = choose.choice((edit.target, choose.choice(known)[1]))
        other, answer = choose.choice(known)
        return [(SecondTurn(prepended, target, prompt), target), (SecondTurn(prepended, target, other), answer)]

    def embed(self, keys: Tensor) -> Tensor:
        return keys @ self.projection.T

    def score(self, vectors: Tensor) -> Tensor:
        return (-squared_distances(vectors, self.vectors)).exp()

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


def copy_parameters(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedModel:
    """A copy of a model with its own parameters of these names; it shares all others."""
    shared = {id(parameter): parameter for name, parameter in model.named_parameters() if name not in names}
    return copy.deepcopy(model, shared)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n, m) between rows of a (n, width) and of b (m, width)."""
    return ((a**2).sum(dim=1)[:, None] + (b**2).sum(dim=1) - 2 * a @ b.T).clamp(min=0)
