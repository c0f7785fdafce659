"""In-context retrieval: the nearest edit is prepended to the prompt, as an earlier turn. Nothing is trained.

Edits and prompts are compared by the cosine of their centred mean keys.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from scen_cli.baselines.context import MethodContext
from scen_cli.baselines.method import Settings
from scen_cli.baselines.retrieval_method import RetrievalMethod


class InContextSettings(Settings):
    """One edit before a prompt, if it is near enough."""

    nearness: float = Field(0.5, ge=-1, le=1, description="least cosine at which an edit is prepended")


class InContext(RetrievalMethod):
    """`mean` (h,) is the mean of the unedited prompts' keys."""

    name = "in-context"
    settings: InContextSettings

    def __init__(self, context: MethodContext, settings: InContextSettings) -> None:
        super().__init__(context, settings, settings.nearness)
        self.mean = torch.zeros(self.layer.ffn_width, device=self.base.device)

    def prepare(self) -> None:
        if self.context.prompts:
            self.mean = self.mean_keys(self.layer, self.context.prompts).mean(dim=0)

    def embed(self, keys: Tensor) -> Tensor:
        return nn.functional.normalize(keys - self.mean, dim=1)

    def score(self, vectors: Tensor) -> Tensor:
        return vectors @ self.vectors.T

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "mean": self.mean}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        [self.mean] = self.loaded(state, {"mean": self.mean.shape})
