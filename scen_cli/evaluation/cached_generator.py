"""Asking each prompt once: answers by prompt and expert, activations by prompt.

An answer depends on the prompt and on the expert that gives it, and on nothing else. So what an
edited model answers at any threshold, after any number of edits, is a choice among answers that
were each generated once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scen_cli.editing.expert_bank import ProjectPatch
from scen_cli.editing.patched_model import PatchedModel
from scen_cli.model.generation import BATCH
from scen_cli.model.routing import choose
from scen_cli.model.template import Prompt

AT_ONCE = 16 * BATCH  # answers between two words of progress


def no_progress(_answered: int) -> None:
    """Tells nobody."""


class CachedGenerator:
    """Answers of a patched model whose edits stay as they are meanwhile."""

    def __init__(
        self,
        patched: PatchedModel,
        patch: ProjectPatch,
        options: dict[str, Any],
        tell: Callable[[int], None] = no_progress,
    ) -> None:
        """`options` are for `generate`; `tell` hears how many answers have been generated."""
        self.patched, self.patch, self._options, self._tell = patched, patch, options, tell
        self._tokens: dict[tuple[Prompt, int | None], list[int]] = {}
        self._activations: dict[Prompt, Tensor] = {}

    def activations(self, prompts: Sequence[Prompt]) -> Tensor:
        """Activations (rows, t) of all active neurons, on the CPU."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._activations]
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            self._activations.update(zip(batch, self.patched.route(batch).activations.cpu(), strict=True))
        if not prompts:
            return torch.empty(0, len(self.patch.edits))
        return torch.stack([self._activations[prompt] for prompt in prompts])

    def route(self, prompts: Sequence[Prompt], first: int | None = None) -> list[int | None]:
        """The expert of each prompt (None: the base); with `first` as it was when only the first so many
        experts were there."""
        return self.patch.edits_of(choose(self.activations(prompts)[:, :first], self.patch.theta))

    def strongest(self, prompts: Sequence[Prompt]) -> list[tuple[int | None, float]]:
        """Each prompt's strongest expert whatever the threshold, and its activation."""
        if not self.patch.edits:
            return [(None, 0.0)] * len(prompts)
        strongest, rows = self.activations(prompts).nan_to_num(nan=-torch.inf).max(dim=1)
        return list(zip(self.patch.edits_of(rows), strongest.tolist(), strict=True))

    def tokens(self, prompts: Sequence[Prompt], experts: Sequence[int | None]) -> list[list[int]]:
        """What is generated for each prompt by an expert, or by the base (None), up to the end token."""
        asked = list(zip(prompts, experts, strict=True))
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._tokens]
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            answers = self.patched.answer([p for p, _ in some], edits=[e for _, e in some], **self._options)
            self._tokens.update(zip(some, answers.tokens, strict=True))
            self._tell(len(self._tokens))
        return [self._tokens[pair] for pair in asked]

    def texts(self, prompts: Sequence[Prompt], experts: Sequence[int | None]) -> list[str]:
        """The same as text: what is compared with a target."""
        return [self.patched.template.answer(tokens) for tokens in self.tokens(prompts, experts)]
