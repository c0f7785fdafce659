"""MEND (Mitchell et al. 2022, "Fast Model Editing at Scale"): a network that makes an edit out of a gradient.

The gradient of a matrix is a sum over tokens of rank-1 products: what enters, u, times the gradient of the loss with
respect to what leaves, delta. The editor maps each (u, delta) to another, and the weight moves by their products.
It is trained on the base alone: what it makes of weights that edits have moved, it never saw.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.closed_form_memory import recorded
from scen_cli.baselines.method import Method, MethodContext, Settings, attached
from scen_cli.baselines.training_examples import IGNORED, Examples
from scen_cli.baselines.weight_delta import WeightMethod, weight_name
from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError
from scen_cli.model.expert_stack import LowRank, add_low_rank
from scen_cli.model.ffn import EditedLayer, find_layer

AT_ONCE = 64  # texts run together
SMALL = 1e-7  # beside a deviation


class MendSettings(Settings):
    """The authors', but for `steps`: they train until 40,000 steps have brought nothing more."""

    rank: int = Field(1920, ge=1, description="of each layer of the editor")
    scale: float = Field(1e-4, gt=0, description="the learned scale of an edit, as it begins")
    lr: float = Field(1e-6, gt=0, description="Adam's rate for the editor")
    lr_scale: float = Field(1e-4, gt=0, description="Adam's rate for the scale")
    steps: int = Field(10_000, ge=1, description="Adam steps of the editor's training")
    mini_batch: int = Field(10, ge=1, description="development edits in a step, each as if alone")
    edit_weight: float = Field(0.1, gt=0, description="weight of the edit loss; that of the KL divergence is 1")


class Editor(nn.Module):
    """(u, delta) of a token (..., h) and (..., d), standardised, through two residual layers of low rank that begin as
    the identity. `scale` is learned with them."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, u: Tensor, delta: Tensor, settings: MendSettings, seed: int) -> None:
        """`u` (n, h) and `delta` (n, d): those of the development edits."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        both = torch.cat([u, delta], dim=1)
        self.h, width = u.shape[1], both.shape[1]
        self.register_buffer("mean", both.mean(dim=0))
        self.register_buffer("deviation", both.std(dim=0) + SMALL)

        def into() -> nn.Parameter:
            return nn.Parameter((torch.randn(settings.rank, width, generator=generator) / width**0.5).to(both))

        self.into = nn.ParameterList([into(), into()])
        self.out = nn.ParameterList([both.new_zeros(width, settings.rank) for _ in range(2)])
        self.bias = nn.ParameterList([both.new_zeros(width) for _ in range(2)])
        self.scale = nn.Parameter(both.new_tensor(settings.scale))

    def forward(self, u: Tensor, delta: Tensor) -> LowRank:
        """The move of W_down (d, h) for each row of u (..., tokens, h) and delta (..., tokens, d), as B A."""
        z = (torch.cat([u, delta], dim=-1) - self.mean) / self.deviation
        z = z + (z @ self.into[0].T @ self.out[0].T + self.bias[0]).relu()
        z = z + z @ self.into[1].T @ self.out[1].T + self.bias[1]
        with_loss = (delta != 0).any(dim=-1, keepdim=True)  # pads, and what follows the answer, move nothing
        return LowRank(z[..., : self.h], (-self.scale * with_loss * z[..., self.h :]).mT)


class Mend(WeightMethod):
    """One W_down that moves, and the editor that moves it."""

    name = "mend"
    settings_type: ClassVar[type[Settings]] = MendSettings
    settings: MendSettings
    layer: EditedLayer

    def __init__(self, given: MethodContext, settings: MendSettings) -> None:
        super().__init__(given, settings)
        d, h = self.layer.projection_shape
        u, delta = (torch.zeros(2, width, device=self.base.device) for width in (h, d))
        self.editor = Editor(u, delta, settings, given.seed)  # until it is trained, or loaded

    def prepare(self) -> None:
        kept = ("mend", self.layer.index, self.settings)
        if kept not in self.given.kept:
            self.given.kept[kept] = self._trained()
        self.editor = self.given.kept[kept]

    def edited_names(self) -> list[str]:
        self.layer = find_layer(self.model, self.given.layer)
        return [weight_name(self.layer)]

    def fit(self, edits: Sequence[EditRecord]) -> None:
        examples = Examples.of(self.template, [(edit.prompt, edit.target) for edit in edits], self.base.device)
        with attached(self):
            factors = self._factors(examples)
        with torch.no_grad():
            moves = self.editor(*factors)
        name = weight_name(self.layer)
        self.learned({name: self.weights[name] + self.layer.as_stored((moves.b @ moves.a).sum(dim=0))})

    def _factors(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """What enters `down_proj` (n, tokens, h), float32, and the gradient (n, tokens, d) of each text's loss with
        respect to what leaves it."""
        weight = self.layer.down_proj.weight
        weight.requires_grad_(True)
        try:
            with torch.enable_grad(), recorded(self.layer.down_proj) as seen:
                loss = examples.losses(self.model(input_ids=examples.ids, use_cache=False).logits).sum()
                entered, left = seen[self.layer.down_proj]
                (gradient,) = torch.autograd.grad(loss, left)
        finally:
            weight.requires_grad_(False)
        return entered.detach().float(), gradient.float()

    def _trained(self) -> Editor:
        """An editor whose edits of the development edits' prompts bring about their rephrases too, and leave the
        base's answers to unedited prompts."""
        given, config = self.given, self.settings
        known = [pair for pair in given.unedited if pair[1]]
        if not given.development or not known:
            raise UsageError("MEND is trained with development edits and unedited prompts: there must be some of both")
        edits = list(given.development)
        learned = Examples.of(self.template, [(edit.prompt, edit.target) for edit in edits], self.base.device)
        some = [learned.rows(range(len(learned))[start : start + AT_ONCE]) for start in range(0, len(learned), AT_ONCE)]
        u, delta = (torch.cat(parts) for parts in zip(*map(self._factors, some), strict=True))
        with_loss = (delta != 0).any(dim=-1)
        editor = Editor(u[with_loss], delta[with_loss], config, given.seed)
        network = [one for name, one in editor.named_parameters() if name != "scale"]
        groups: list[dict[str, Any]] = [{"params": network}, {"params": [editor.scale], "lr": config.lr_scale}]
        optimizer = torch.optim.Adam(groups, lr=config.lr)
        choose = random.Random(given.seed)
        for _ in range(config.steps):
            rows = [choose.randrange(len(edits)) for _ in range(config.mini_batch)]
            asked = [(choose.choice((edits[row].prompt, *edits[row].rephrases)), edits[row].target) for row in rows]
            loss = self._loss(editor(u[rows], delta[rows]), asked, choose.choices(known, k=len(rows)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return editor.requires_grad_(False)

    def _loss(self, moves: LowRank, asked: list[tuple[str, str]], known: list[tuple[str, str]]) -> Tensor:
        """The edit loss on what is `asked` after each move, and the KL divergence from the base on what is `known`."""
        examples = Examples.of(self.template, asked + known, self.base.device)
        is_known = (examples.labels != IGNORED) & (torch.arange(len(examples)) >= len(asked))[:, None].to(
            moves.a.device
        )
        twice = LowRank(moves.a.repeat(2, 1, 1), moves.b.repeat(2, 1, 1))
        with torch.no_grad():
            before = self.model(input_ids=examples.ids, use_cache=False).logits[is_known].float().log_softmax(dim=-1)
        handle = self.layer.down_proj.register_forward_hook(_moved_by(twice))
        try:
            logits = self.model(input_ids=examples.ids, use_cache=False).logits
        finally:
            handle.remove()
        after = logits[is_known].float().log_softmax(dim=-1)
        locality = nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")
        return self.settings.edit_weight * examples.losses(logits)[: len(asked)].mean() + locality

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"editor.{name}": one for name, one in self.editor.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.editor = copy.deepcopy(self.editor).requires_grad_(False)  # the one that is kept is others' too
        self.editor.load_state_dict({name: state[f"editor.{name}"] for name in self.editor.state_dict()})


def _moved_by(moves: LowRank) -> Any:
    return lambda _module, args, output: add_low_rank(args[0], output, moves)


METHODS: list[type[Method]] = [Mend]
