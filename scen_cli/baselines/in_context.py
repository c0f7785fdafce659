"""In-context retrieval: the nearest edit is put in front of the prompt, as an earlier turn. Nothing is trained.

Edits and prompts are compared by their SCEN keys, averaged over their tokens and centred.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.method import Method, MethodContext, Settings
from scen_cli.baselines.retrieval_base import RetrievalMethod


class InContextSettings(Settings):
    """One edit in front of a prompt, if it is near enough."""

    nearness: float = Field(0.5, ge=-1, le=1, description="the least cosine at which an edit is put in front")


class InContext(RetrievalMethod):
    """`mean` (h,) is what unedited prompts have in common."""

    name = "in-context"
    settings_type: ClassVar[type[Settings]] = InContextSettings
    settings: InContextSettings

    def __init__(self, given: MethodContext, settings: InContextSettings) -> None:
        super().__init__(given, settings)
        self.mean = torch.zeros(self.layer.ffn_width, device=self.base.device)

    def prepare(self) -> None:
        if self.given.prompts:
            self.mean = self.states(self.given.prompts).mean(dim=0)

    def embedded(self, states: Tensor) -> Tensor:
        return nn.functional.normalize(states - self.mean, dim=1)

    def found(self, vectors: Tensor) -> list[int | None]:
        nearness, nearest = (vectors @ self.vectors.T).max(dim=1)
        pairs = zip(nearest.tolist(), nearness.tolist(), strict=True)
        return [place if near >= self.settings.nearness else None for place, near in pairs]

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "mean": self.mean}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.mean = state["mean"].to(self.base.device)


METHODS: list[type[Method]] = [InContext]
