"""FT, FT+KL and a well-tuned FT: the FFN of one decoder layer trained on the edits.

FT is the paper's: each edit in turn, the weights carried over. FT+KL holds the answers to the nearest known questions
where they were. The tuned one sees all edits at once, in mini-batches, several times over.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.method import Method, MethodContext, Settings, attached
from scen_cli.baselines.training_examples import IGNORED, Examples
from scen_cli.baselines.weight_delta import WeightMethod
from scen_cli.data.records import EditRecord
from scen_cli.model.ffn import find_layer
from scen_cli.model.keys import read_keys


class FineTuningSettings(Settings):
    """SCEN's paper: 10 Adam steps an edit."""

    lr: float = Field(1e-4, gt=0, description="Adam's rate")
    steps: int = Field(10, ge=1, description="Adam steps on each edit")


class FineTuning(WeightMethod):
    """Each edit in turn, with a new optimizer, on the weights that the one before left."""

    name = "ft"
    settings_type: ClassVar[type[Settings]] = FineTuningSettings
    settings: FineTuningSettings

    def edited_names(self) -> list[str]:
        """The matrices of the layer's FFN."""
        down = find_layer(self.model, self.given.layer).down_proj_name
        ffn = down.rpartition(".")[0]
        return [name for name, one in self.model.named_parameters() if name.startswith(f"{ffn}.") and one.dim() == 2]

    def fit(self, edits: Sequence[EditRecord]) -> None:
        weights = {name: one.clone().requires_grad_() for name, one in self.weights.items()}
        for edit in edits:
            examples = Examples.of(self.template, [(edit.prompt, edit.target)], self.base.device)
            optimizer = torch.optim.Adam(weights.values(), lr=self.settings.lr)
            for _ in range(self.settings.steps):
                loss = self.loss(weights, examples, edit)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.learned(weights)

    def loss(self, weights: dict[str, Tensor], examples: Examples, _edit: EditRecord) -> Tensor:
        return examples.losses(self.run(weights, examples.ids)).mean()


class FineTuningKLSettings(FineTuningSettings):
    """SCEN's paper: the 5 nearest questions of D_train."""

    neighbours: int = Field(5, ge=1, description="known questions whose answers are to stay")
    kl: float = Field(1.0, ge=0, description="weight of the KL divergence on them")


class FineTuningKL(FineTuning):
    """FT whose loss has the KL divergence from the base on the nearest unedited questions, over their answers."""

    name = "ft-kl"
    settings_type: ClassVar[type[Settings]] = FineTuningKLSettings
    settings: FineTuningKLSettings

    def __init__(self, given: MethodContext, settings: Settings) -> None:
        super().__init__(given, settings)
        self._layer = find_layer(self.model, self.given.layer)

    def _known(self) -> tuple[list[tuple[str, str]], Tensor]:
        """Unedited questions that the base has an answer to, with their vectors (n, h); kept with what is given."""
        kept = ("known questions", self._layer.index)
        if kept not in self.given.kept:
            known = [pair for pair in self.given.unedited if pair[1]]
            self.given.kept[kept] = known, self._meaning([prompt for prompt, _answer in known])
        found: tuple[list[tuple[str, str]], Tensor] = self.given.kept[kept]
        return found

    def loss(self, weights: dict[str, Tensor], examples: Examples, edit: EditRecord) -> Tensor:
        return super().loss(weights, examples, edit) + self.settings.kl * self._kl(weights, edit)

    def _kl(self, weights: dict[str, Tensor], edit: EditRecord) -> Tensor:
        with attached(self, False):
            questions, meanings = self._known()
            nearness = meanings @ self._meaning([edit.prompt])[0]
        nearest = nearness.topk(min(self.settings.neighbours, len(questions))).indices.tolist()
        known = Examples.of(self.template, [questions[row] for row in nearest], self.base.device)
        scored = known.labels != IGNORED
        with torch.no_grad():
            before = self.run(self.own_weights(), known.ids)[scored].float().log_softmax(dim=-1)
        after = self.run(weights, known.ids)[scored].float().log_softmax(dim=-1)
        return nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")

    def _meaning(self, prompts: Sequence[str]) -> Tensor:
        """A vector of unit length for each prompt, in place of a sentence embedding: the mean over its tokens of what
        enters the layer's `down_proj` in the base."""

        def read(ids: Tensor, mask: Tensor) -> Tensor:
            return read_keys(self.model, self._layer.down_proj, ids, mask, "mean")

        return nn.functional.normalize(self.read(prompts, self._layer.ffn_width, read), dim=1)


class FineTuningTunedSettings(Settings):
    """After Gangadhar and Stratos 2024, "Model Editing by Standard Fine-Tuning": likelihood of the target alone, in
    mini-batches over all edits."""

    batch: int | None = Field(None, ge=1, description="edits fitted at once; none: all there are")
    lr: float = Field(1e-4, gt=0, description="Adam's rate")
    epochs: int = Field(20, ge=1, description="passes over the edits")
    mini_batch: int = Field(16, ge=1, description="edits in a step")


class FineTuningTuned(FineTuning):
    """All edits in mini-batches, several times over, with one optimizer."""

    name = "ft-tuned"
    settings_type: ClassVar[type[Settings]] = FineTuningTunedSettings
    settings: FineTuningTunedSettings  # type: ignore[assignment]

    def fit(self, edits: Sequence[EditRecord]) -> None:
        weights = {name: one.clone().requires_grad_() for name, one in self.weights.items()}
        optimizer = torch.optim.Adam(weights.values(), lr=self.settings.lr)
        order = list(edits)
        shuffle = random.Random(self.given.seed)
        for _ in range(self.settings.epochs):
            shuffle.shuffle(order)
            for start in range(0, len(order), self.settings.mini_batch):
                some = [(edit.prompt, edit.target) for edit in order[start : start + self.settings.mini_batch]]
                examples = Examples.of(self.template, some, self.base.device)
                loss = examples.losses(self.run(weights, examples.ids)).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.learned(weights)


METHODS: list[type[Method]] = [FineTuning, FineTuningKL, FineTuningTuned]
