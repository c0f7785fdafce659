"""`WeightMethod`: methods that change weights of the base. FT, FT+KL, a tuned FT and UltraEdit.

FT and FT+KL are the baselines of SCEN's paper: each edit in turn, on the weights that the edit before left. FT+KL adds
a KL divergence from the base on the nearest known questions. The tuned FT (after Gangadhar and Stratos 2024, "Model
Editing by Standard Fine-Tuning") trains on all edits in mini-batches for several epochs.

UltraEdit (Gu et al. 2025, "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing") edits in closed form.
Each batch moves W_down by ridge regression from the standardised inputs to the standardised gradients at the tokens
that predict the answers. Nothing is trained: means and deviations run over all batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from scen_cli.baselines.context import Examples, MethodContext, batched, kl_from_base, run_texts, take_step
from scen_cli.baselines.hook_method import recorded
from scen_cli.baselines.method import Method, Settings, attached
from scen_cli.data.records import EditRecord
from scen_cli.model.ffn import EditedLayer


class WeightMethod(Method):
    """Keeps `weights`: float32 values for some of the base's parameters, by name. `attach` copies them into the
    model, `detach` copies the base's own values back."""

    def __init__(self, context: MethodContext, settings: Settings, layers: int = 1) -> None:
        super().__init__(context, settings)
        self.layers = self.context.layers(layers)
        parameters = dict(self.model.named_parameters())
        self.parameters = {name: parameters[name] for name in self.edited_names()}
        self.weights = {name: parameter.detach().float().clone() for name, parameter in self.parameters.items()}
        self._base_weights: dict[str, Tensor] = {}  # while the method is attached

    def edited_names(self) -> list[str]:
        """Names of the parameters that edits change: W_down of the edited layers."""
        return [_weight_name(layer) for layer in self.layers]

    def attach(self) -> None:
        if not self.attached:
            self._base_weights = {name: weight.detach().clone() for name, weight in self.parameters.items()}
            self._copy(self.weights)
        super().attach()

    def detach(self) -> None:
        if self.attached:
            self._copy(self._base_weights)
            self._base_weights = {}
        super().detach()

    @torch.no_grad()
    def _copy(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Replace `weights`, and the model's parameters if the method is attached."""
        self.weights = {name: weight.detach().float().clone() for name, weight in weights.items()}
        if self.attached:
            self._copy(self.weights)

    def add(self, layer: EditedLayer, delta: Tensor) -> None:
        """Add `delta` (d, h) to a layer's W_down."""
        name = _weight_name(layer)
        self.set_weights({**self.weights, name: self.weights[name] + layer.as_stored(delta).float()})

    def base_weights(self) -> dict[str, Tensor]:
        """The base's own values, float32, whether or not the method is attached."""
        return {name: (self._base_weights or self.parameters)[name].detach().float() for name in self.parameters}

    def state(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load(self, state: dict[str, Tensor]) -> None:
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        self.set_weights(dict(zip(shapes, self.loaded(state, shapes), strict=True)))


def run_with(model: PreTrainedModel, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Logits of texts padded on the right; `weights` replace parameters of the model and are cast to their dtype."""
    parameters = dict(model.named_parameters())
    cast = {name: weight.to(parameters[name].dtype) for name, weight in weights.items()}
    return functional_call(model, cast, kwargs={"input_ids": ids, "use_cache": False}).logits


def inputs_and_gradients(
    model: PreTrainedModel, layers: Sequence[EditedLayer], examples: Examples
) -> list[tuple[Tensor, Tensor]]:
    """For each layer, of the summed losses of the examples: the input of `down_proj` (n, tokens, h) and the gradient
    of its output (n, tokens, d), both float32. Their outer products, summed over tokens, are the gradient of W_down."""
    modules = [layer.down_proj for layer in layers]
    for module in modules:
        module.weight.requires_grad_(True)
    try:
        with torch.enable_grad(), recorded(*modules) as seen:
            loss = examples.losses(run_texts(model, examples.ids)).sum()
            gradients = torch.autograd.grad(loss, [seen[module][1] for module in modules])
    finally:
        for module in modules:
            module.weight.requires_grad_(False)
    inputs = [seen[module][0].detach().float() for module in modules]
    return [(entered, gradient.float()) for entered, gradient in zip(inputs, gradients, strict=True)]


def _weight_name(layer: EditedLayer) -> str:
    return f"{layer.down_proj_name}.weight"


class FineTuningSettings(Settings):
    """SCEN's paper: 10 Adam steps per edit."""

    lr: float = Field(1e-4, gt=0, description="Adam's learning rate")
    steps: int = Field(10, ge=1, description="Adam steps on each edit")


class FineTuning(WeightMethod):
    """Trains on one edit after another, each with a new optimizer."""

    name = "ft"
    settings: FineTuningSettings

    def edited_names(self) -> list[str]:
        """The matrices of the layer's FFN."""
        ffn = self.layers[0].down_proj_name.rpartition(".")[0]
        parameters = self.model.named_parameters()
        return [name for name, weight in parameters if name.startswith(f"{ffn}.") and weight.dim() == 2]

    def fit(self, edits: Sequence[EditRecord]) -> None:
        weights = self.trainable_weights()
        for edit in edits:
            optimizer = torch.optim.Adam(weights.values(), lr=self.settings.lr)
            for _ in range(self.settings.steps):
                take_step(optimizer, self.loss(weights, edit))
        self.set_weights(weights)

    def trainable_weights(self) -> dict[str, Tensor]:
        return {name: weight.clone().requires_grad_() for name, weight in self.weights.items()}

    def loss(self, weights: dict[str, Tensor], *edits: EditRecord) -> Tensor:
        examples = self.examples(edits)
        return examples.losses(run_with(self.model, weights, examples.ids)).mean()


class FineTuningKLSettings(FineTuningSettings):
    """SCEN's paper: the 5 nearest questions of D_train."""

    neighbours: int = Field(5, ge=1, description="known questions whose answers must stay")
    kl: float = Field(1.0, ge=0, description="weight of the KL divergence on them")


class FineTuningKL(FineTuning):
    """Adds the KL divergence from the base on its answers to the nearest unedited questions."""

    name = "ft-kl"
    settings: FineTuningKLSettings

    def loss(self, weights: dict[str, Tensor], *edits: EditRecord) -> Tensor:
        [edit] = edits
        with attached(self, False):
            questions, embeddings = self._known_questions()
            nearness = embeddings @ self._embed([edit.prompt])[0]
        nearest = nearness.topk(min(self.settings.neighbours, len(questions))).indices.tolist()
        known = self.context.examples([questions[row] for row in nearest])
        with torch.no_grad():
            before = run_with(self.model, self.base_weights(), known.ids)[known.scored].float().log_softmax(dim=-1)
        kl = kl_from_base(before, run_with(self.model, weights, known.ids)[known.scored])
        return super().loss(weights, edit) + self.settings.kl * kl

    def _known_questions(self) -> tuple[list[tuple[str, str]], Tensor]:
        """Unedited questions with the base's answers, and the questions' embeddings (n, h)."""
        known = self.context.known_answers
        key = ("known questions", self.layers[0].index)
        return known, self.context.cached(key, lambda: self._embed([prompt for prompt, _answer in known]))

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """A vector of unit length for each prompt (n, h). The mean key replaces the paper's sentence embedding."""
        return nn.functional.normalize(self.mean_keys(self.layers[0], prompts), dim=1)


class FineTuningTunedSettings(Settings):
    """Gangadhar and Stratos: likelihood of the target alone, in mini-batches over all edits."""

    batch: int | None = Field(None, ge=1, description="edits fitted together; none: all of them")
    lr: float = Field(1e-4, gt=0, description="Adam's learning rate")
    epochs: int = Field(20, ge=1, description="passes over the edits")
    mini_batch: int = Field(16, ge=1, description="edits in a step")


class FineTuningTuned(FineTuning):
    """Trains on all edits in mini-batches, for several epochs, with one optimizer."""

    name = "ft-tuned"
    settings: FineTuningTunedSettings  # type: ignore[assignment]

    def fit(self, edits: Sequence[EditRecord]) -> None:
        weights = self.trainable_weights()
        optimizer = torch.optim.Adam(weights.values(), lr=self.settings.lr)
        order = list(edits)
        shuffle = random.Random(self.context.seed)
        for _ in range(self.settings.epochs):
            shuffle.shuffle(order)
            for mini_batch in batched(order, self.settings.mini_batch):
                take_step(optimizer, self.loss(weights, *mini_batch))
        self.set_weights(weights)


class UltraEditSettings(Settings):
    """The authors': batches of 100 edits, eta 1e-6 (Llama-3-8B), a ridge of 1."""

    batch: int | None = Field(100, ge=1, description="edits fitted together; none: all of them")
    layers: int = Field(1, ge=1, description="consecutive decoder layers to edit, up to the project's")
    eta: float = Field(1e-6, gt=0, description="the length of a move")


class RunningMoments:
    """Mean and variance (width,), in float64, of all rows so far, by Chan's update."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.mean, self.squares = (torch.zeros(width, dtype=torch.float64, device=device) for _ in range(2))

    def standardise(self, rows: Tensor) -> Tensor:
        """Add rows (n, width), and return them standardised by the moments with them."""
        rows = rows.double()
        count = self.count + len(rows)
        difference = rows.mean(dim=0) - self.mean
        self.squares += ((rows - rows.mean(dim=0)) ** 2).sum(dim=0) + difference**2 * self.count * len(rows) / count
        self.mean, self.count = self.mean + difference * len(rows) / count, count
        deviation = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        return (rows - self.mean) / (deviation + 1e-12)


class UltraEdit(WeightMethod):
    """Weights that move, and for each layer the running moments of its inputs (h,) and gradients (d,)."""

    name = "ultra-edit"
    settings: UltraEditSettings

    def __init__(self, context: MethodContext, settings: UltraEditSettings) -> None:
        super().__init__(context, settings, settings.layers)
        self.moments: dict[str, RunningMoments] = {}
        for layer in self.layers:
            d, h = layer.projection_shape
            self.moments[f"{layer.index}.inputs"] = RunningMoments(h, self.base.device)
            self.moments[f"{layer.index}.gradients"] = RunningMoments(d, self.base.device)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        examples = self.examples(edits)
        with attached(self):
            factors = inputs_and_gradients(self.model, self.layers, examples)
        for layer, (inputs, gradients) in zip(self.layers, factors, strict=True):
            h = self.moments[f"{layer.index}.inputs"].standardise(inputs[examples.scored])
            g = self.moments[f"{layer.index}.gradients"].standardise(gradients[examples.scored])
            v = -self.settings.eta * (h**2).sum(dim=1, keepdim=True) * g
            ridge = torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
            self.add(layer, torch.linalg.solve(h.T @ h + ridge, h.T @ v).T)

    def state(self) -> dict[str, Tensor]:
        tensors = super().state()
        for key, moments in self.moments.items():
            tensors |= {f"{key}.{name}": value for name, value in vars(moments).items()}
        return tensors

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        for key, moments in self.moments.items():
            shapes = {f"{key}.{name}": value.shape for name, value in vars(moments).items()}
            moments.count, moments.mean, moments.squares = self.loaded(state, shapes)
