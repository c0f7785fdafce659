"""MEND (Mitchell et al. 2022, "Fast Model Editing at Scale"): a network that turns a gradient into an edit.

The gradient of a matrix is a sum over tokens of the products of the input u and the output's gradient delta. The
network maps each (u, delta) to another pair, and the weight moves by the sum of the products of these pairs. Its
training uses the base only: it never sees weights that edits have moved.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.context import Examples, MethodContext, batched, kl_from_base, run_texts, take_step
from scen_cli.baselines.hook_method import low_rank_added
from scen_cli.baselines.method import Settings, attached
from scen_cli.baselines.weight_method import WeightMethod, inputs_and_gradients
from scen_cli.data.records import EditRecord
from scen_cli.model.expert_stack import LowRank

EPSILON = 1e-7  # added to a deviation


class MendSettings(Settings):
    """The authors', except `steps`: they train until 40,000 steps have brought no improvement."""

    rank: int = Field(1920, ge=1, description="rank of each layer of the network")
    scale: float = Field(1e-4, gt=0, description="initial value of the learned scale of an edit")
    lr: float = Field(1e-6, gt=0, description="Adam's learning rate for the network")
    lr_scale: float = Field(1e-4, gt=0, description="Adam's learning rate for the scale")
    steps: int = Field(10_000, ge=1, description="Adam steps of the network's training")
    mini_batch: int = Field(10, ge=1, description="development edits in a step, each edited alone")
    edit_weight: float = Field(0.1, gt=0, description="weight of the edit loss; that of the KL divergence is 1")


class GradientNetwork(nn.Module):
    """Standardises (u, delta) of each token, (..., h) and (..., d), and passes them through two residual layers of low
    rank that start as the identity. `scale` is trained with them."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, u: Tensor, delta: Tensor, settings: MendSettings, seed: int) -> None:
        """`u` (n, h) and `delta` (n, d) of the development edits."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        pairs = torch.cat([u, delta], dim=1)
        self.h, width = u.shape[1], pairs.shape[1]
        self.register_buffer("mean", pairs.mean(dim=0))
        self.register_buffer("deviation", pairs.std(dim=0) + EPSILON)

        def random_rows() -> nn.Parameter:
            return nn.Parameter((torch.randn(settings.rank, width, generator=generator) / width**0.5).to(pairs))

        self.into = nn.ParameterList([random_rows(), random_rows()])
        self.out = nn.ParameterList([pairs.new_zeros(width, settings.rank) for _ in range(2)])
        self.bias = nn.ParameterList([pairs.new_zeros(width) for _ in range(2)])
        self.scale = nn.Parameter(pairs.new_tensor(settings.scale))

    def forward(self, u: Tensor, delta: Tensor) -> LowRank:
        """The move of W_down (d, h) for each row of u (..., tokens, h) and delta (..., tokens, d), as B A."""
        z = (torch.cat([u, delta], dim=-1) - self.mean) / self.deviation
        z = z + (z @ self.into[0].T @ self.out[0].T + self.bias[0]).relu()
        z = z + z @ self.into[1].T @ self.out[1].T + self.bias[1]
        with_loss = (delta != 0).any(dim=-1, keepdim=True)  # pads and later tokens must move nothing
        return LowRank(z[..., : self.h], (-self.scale * with_loss * z[..., self.h :]).mT)


class Mend(WeightMethod):
    """One W_down that moves, and the `network` that computes the moves."""

    name = "mend"
    settings: MendSettings

    def __init__(self, context: MethodContext, settings: MendSettings) -> None:
        super().__init__(context, settings)
        [self.layer] = self.layers
        d, h = self.layer.projection_shape
        u, delta = (torch.zeros(2, width, device=self.base.device) for width in (h, d))
        self.network = GradientNetwork(u, delta, settings, context.seed)  # until it is trained or loaded

    def prepare(self) -> None:
        self.network = self.context.cached(("mend", self.layer.index, self.settings), self._train)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        examples = self.examples(edits)
        with attached(self):
            factors = self._factors(examples)
        with torch.no_grad():
            moves = self.network(*factors)
        self.add(self.layer, (moves.b @ moves.a).sum(dim=0))

    def _factors(self, examples: Examples) -> tuple[Tensor, Tensor]:
        [factors] = inputs_and_gradients(self.model, self.layers, examples)
        return factors

    def _train(self) -> GradientNetwork:
        """Train a network whose edits of development edits' prompts teach their rephrases too, and keep the base's
        answers to unedited prompts."""
        self.context.check_training_data("MEND")
        config, known, edits = self.settings, self.context.known_answers, self.context.development
        examples = self.examples(edits)
        batches = [examples.rows(rows) for rows in batched(range(len(examples)))]
        u, delta = (torch.cat(parts) for parts in zip(*map(self._factors, batches), strict=True))
        with_loss = (delta != 0).any(dim=-1)
        network = GradientNetwork(u[with_loss], delta[with_loss], config, self.context.seed)
        weights = [parameter for name, parameter in network.named_parameters() if name != "scale"]
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": [network.scale], "lr": config.lr_scale}]
        optimizer = torch.optim.Adam(groups, lr=config.lr)
        choose = random.Random(self.context.seed)
        for _ in range(config.steps):
            rows = [choose.randrange(len(edits)) for _ in range(config.mini_batch)]
            pairs = [(choose.choice((edits[row].prompt, *edits[row].rephrases)), edits[row].target) for row in rows]
            loss = self._loss(network(u[rows], delta[rows]), pairs, choose.choices(known, k=len(rows)))
            take_step(optimizer, loss)
        return network.requires_grad_(False)

    def _loss(self, moves: LowRank, edited: list[tuple[str, str]], known: list[tuple[str, str]]) -> Tensor:
        """With move i in place: the loss of `edited[i]`, and the KL divergence from the base on `known[i]`."""
        examples = self.context.examples(edited + known)
        is_known = (torch.arange(len(examples)) >= len(edited)).to(moves.a.device)
        scored = examples.scored & is_known[:, None]
        with torch.no_grad():
            before = run_texts(self.model, examples.ids)[scored].float().log_softmax(dim=-1)
        twice = LowRank(moves.a.repeat(2, 1, 1), moves.b.repeat(2, 1, 1))
        with low_rank_added({self.layer.down_proj: twice}):
            logits = run_texts(self.model, examples.ids)
        edit_loss = examples.losses(logits)[: len(edited)].mean()
        return self.settings.edit_weight * edit_loss + kl_from_base(before, logits[scored])

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"editor.{name}": tensor for name, tensor in self.network.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.network = copy.deepcopy(self.network).requires_grad_(False)  # the cached one belongs to others too
        self.network.load_state_dict({name: state[f"editor.{name}"] for name in self.network.state_dict()})
