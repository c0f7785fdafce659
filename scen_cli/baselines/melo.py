"""MELO (Yu et al. 2024): dynamic LoRA blocks, one for each batch of edits, found through a vector database of keys.

A key is the output of one decoder layer of the base at the prompt's last token. Block b owns `rank` rows of A and
columns of B, and is trained on its batch alone: no later batch touches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from scen_cli.baselines.closed_form_memory import recorded
from scen_cli.baselines.method import HookMethod, Method, MethodContext, Settings, attached
from scen_cli.baselines.training_examples import Examples
from scen_cli.baselines.vector_database import VectorDatabase, calibrated_radius
from scen_cli.data.records import EditRecord
from scen_cli.model.expert_stack import ActiveRoute, ExpertStack, LowRank, add_low_rank
from scen_cli.model.keys import last_token, positions_of
from scen_cli.model.routing import BASE

NEIGHBOURS = 500  # unedited prompts that the radius is calibrated with


class MeloSettings(Settings):
    """The authors' for hallucination on GPT2-XL, but for the radius, which does not transfer between models."""

    batch: int | None = Field(4, ge=1, description="edits of one block")
    rank: int = Field(2, ge=1, description="of one block")
    layers: int = Field(1, ge=1, description="decoder layers in a row, up to the project's, that have LoRA")
    steps: int = Field(50, ge=1, description="Adam steps on a block")
    lr: float = Field(1e-3, gt=0, description="Adam's rate")
    halve_every: int = Field(20, ge=1, description="steps after which the rate is halved")
    scale: float = Field(10.0, gt=0, description="of a block's output: sqrt(r_tot / rank) of the authors' 100 blocks")
    radius: float | None = Field(None, gt=0, description="r0; none: calibrated on the first batch")


class Melo(HookMethod):
    """`blocks`: for each layer the A (r_tot, h) and B (d, r_tot) of all blocks; `database`: whose prompt is whose."""

    name = "melo"
    settings_type: ClassVar[type[Settings]] = MeloSettings
    settings: MeloSettings

    def __init__(self, given: MethodContext, settings: MeloSettings) -> None:
        super().__init__(given, settings)
        self.layers = self.given.layers(settings.layers)
        self.count = 0  # of blocks
        self.a = [torch.empty(0, one.ffn_width, device=self.base.device) for one in self.layers]
        self.b = [torch.empty(0, one.projection_shape[0], device=self.base.device) for one in self.layers]
        self.database = VectorDatabase(settings.radius or 0.0)
        self._random = torch.Generator().manual_seed(self.given.seed)

    def fit(self, edits: Sequence[EditRecord]) -> None:
        with attached(self, False):  # keys are the base's
            keys = self._keys([edit.prompt for edit in edits])
            if not self.database.radius:
                self.database.radius = self._calibrate(edits, keys)
            for edit, key in zip(edits, keys, strict=True):
                label = tuple(self.template.target_ids(edit.prompt, edit.target))
                self.database.add(key, label, self.count)
            self._train(edits)
        self.count += 1

    def _calibrate(self, edits: Sequence[EditRecord], keys: Tensor) -> float:
        """r0 by the distances from edits to their own rephrases, and to the nearest unedited prompt or other edit.
        Development edits serve where there are any, else these; without rephrases it is half the nearest stranger's.
        """
        known = [edit for edit in self.given.development if edit.rephrases] or list(edits)
        keys = self._keys([edit.prompt for edit in known]) if known is not edits else keys
        asked = ((row, text) for row, edit in enumerate(known) for text in edit.rephrases[:3])
        pairs = [(row, text) for row, text in asked if self.given.has_room(text, "")]
        strangers = self._keys(self.given.prompts[:NEIGHBOURS])
        apart = torch.cdist(keys, torch.cat([strangers, keys]))
        apart[torch.arange(len(keys)), len(strangers) + torch.arange(len(keys))] = torch.inf
        own = (self._keys([text for _row, text in pairs]) - keys[[row for row, _text in pairs]]).norm(dim=1)
        nearest = apart.amin(dim=1)
        return calibrated_radius(own, nearest[nearest.isfinite()])

    def _train(self, edits: Sequence[EditRecord]) -> None:
        config = self.settings
        examples = Examples.of(self.template, [(edit.prompt, edit.target) for edit in edits], self.base.device)
        blocks = []
        for layer in self.layers:
            bound = (6 / ((1 + 5) * layer.ffn_width)) ** 0.5  # kaiming_uniform_(a=sqrt(5)), as LoRA has it
            a = torch.empty(config.rank, layer.ffn_width).uniform_(-bound, bound, generator=self._random)
            b = torch.zeros(layer.projection_shape[0], config.rank)
            blocks.append((a.to(self.base.device).requires_grad_(), b.to(self.base.device).requires_grad_()))
        optimizer = torch.optim.Adam([one for block in blocks for one in block], lr=config.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.halve_every, gamma=0.5)
        handles = [
            layer.down_proj.register_forward_hook(_adding(a, b, config.scale))
            for layer, (a, b) in zip(self.layers, blocks, strict=True)
        ]
        try:
            for _ in range(config.steps):
                losses = examples.losses(self.model(input_ids=examples.ids, use_cache=False).logits)
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
                schedule.step()
        finally:
            for handle in handles:
                handle.remove()
        self.a = [torch.cat([old, a.detach()]) for old, (a, _b) in zip(self.a, blocks, strict=True)]
        self.b = [torch.cat([old, b.detach().T * config.scale]) for old, (_a, b) in zip(self.b, blocks, strict=True)]

    def _keys(self, prompts: Sequence[str]) -> Tensor:
        """Keys (n, d), float32, of prompts."""
        return self.read(prompts, self.layers[-1].projection_shape[0], self._read)

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        block = self.layers[-1].layers[self.layers[-1].index]
        with recorded(block) as seen:
            self.model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False)
        return seen[block][1][torch.arange(len(ids), device=ids.device), last_token(mask)].float()

    @torch.no_grad()
    def decide(self, ids: Tensor, mask: Tensor) -> list[ActiveRoute]:
        with self.carrying(mask.sum(dim=1), None):  # no block yet: keys are the base's
            blocks = [self.database.find(key) for key in self._read(ids, mask)]
        choice = torch.tensor([BASE if block is None else block for block in blocks])
        ranks = torch.full((self.count,), self.settings.rank)
        return [
            ActiveRoute(ExpertStack(a, b, ranks, _none_is_full), choice) for a, b in zip(self.a, self.b, strict=True)
        ]

    def why(self, prompt: str) -> str:
        with attached(self, False):
            key = self._keys([prompt])[0]
        nearest, distance = self.database.nearest(key)
        if nearest is None:
            return "no edit yet"
        block = self.database.find(key)
        told = f"the nearest cluster is {distance:.3f} away, its radius {nearest.radius:.3f}"
        return f"{told}: {'the base answers' if block is None else f'block {block} answers'}"

    def hooks(self) -> list[Any]:
        def hook_of(number: int) -> Any:
            return lambda module, args, output: self._output(number, module, args[0], output)

        return [layer.down_proj.register_forward_hook(hook_of(n)) for n, layer in enumerate(self.layers)]

    def _output(self, number: int, module: Any, hidden: Tensor, output: Tensor) -> Tensor | None:
        under_way = self.under_way()
        if under_way is None or under_way.decided is None:
            return None
        carried: ActiveRoute = under_way.decided[number]
        return carried.output(module, hidden, output)

    def state(self) -> dict[str, Tensor]:
        named = {f"database.{name}": one for name, one in self.database.tensors().items()}
        for layer, a, b in zip(self.layers, self.a, self.b, strict=True):
            named |= {f"{layer.index}.lora_A": a, f"{layer.index}.lora_B": b}
        return {**named, "count": torch.tensor(self.count), "random": self._random.get_state()}

    def load(self, state: dict[str, Tensor]) -> None:
        device = self.base.device
        self.database.load(
            {name.removeprefix("database."): one.to(device) for name, one in state.items() if "database." in name}
        )
        self.a = [state[f"{layer.index}.lora_A"].to(device) for layer in self.layers]
        self.b = [state[f"{layer.index}.lora_B"].to(device) for layer in self.layers]
        self.count = int(state["count"])
        rows = self.count * self.settings.rank
        wanted = [((rows, one.ffn_width), (rows, one.projection_shape[0])) for one in self.layers]
        shapes = [(tuple(a.shape), tuple(b.shape)) for a, b in zip(self.a, self.b, strict=True)]
        if shapes != wanted or not all(0 <= block < self.count for block in state["database.blocks"].tolist()):
            raise ValueError(f"its blocks have shapes {shapes}")
        self._random.set_state(state["random"].cpu())


def _adding(a: Tensor, b: Tensor, scale: float) -> Any:
    return lambda _module, args, output: add_low_rank(args[0], output, LowRank(a, scale * b))


def _none_is_full(row: int) -> Tensor:
    raise LookupError(f"block {row} is low-rank")


METHODS: list[type[Method]] = [Melo]
