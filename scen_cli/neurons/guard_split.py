"""`GuardSplit`: one split of the guard prompts, ready to be scored by neurons."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scen_cli.data.lexical_overlap import Topics
from scen_cli.data.words import plain
from scen_cli.model.routing import max_per_prompt
from scen_cli.model.subject_filter import BLOCKED
from scen_cli.project.guard import QUESTION_BANK, SELF_WRITTEN, Guard
from scen_cli.project.ledger_rows import Edit
from scen_cli.recipe import Recipe

NEAR = 0.7  # prompts on one topic ask the same question from this activation on (benchmarks/LOG.md)

MatchKey = tuple[str, str | None]  # an edit's prompt, and its subject if routing can look for it


def match_key(edit: Edit) -> MatchKey:
    """The prompt of an edit, and its subject if the subject filter looks for it."""
    return edit.prompt, edit.subject if edit.subject_names else None


class GuardSplit:
    """The prompts of one split of the guard and their prepared keys. Empty if the project has no guard."""

    def __init__(
        self, guard: Guard | None, name: str, width: int, recipe: Recipe, prepare_keys: Callable[[Tensor], Tensor]
    ) -> None:
        self._subject_filter, self._masks_subjects = recipe.subject_filter, recipe.masks_subjects
        self.prompts: list[str] = []
        self.keys, self._prompt_of_key = torch.empty(0, width), torch.empty(0, dtype=torch.long)
        if guard:
            self.prompts, keys, prompt_of_key = guard.split(name)
            self.keys, self._prompt_of_key = prepare_keys(torch.from_numpy(keys)), torch.from_numpy(prompt_of_key)
        self._from_user = guard is not None and guard.source(name) not in (SELF_WRITTEN, QUESTION_BANK)
        self._keys_by_prompt: Sequence[Tensor] | None = None  # indices of each prompt's keys, computed on first use
        self.topics = Topics(self.prompts)
        self._prompts_by_words: dict[str, list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            self._prompts_by_words.setdefault(plain(prompt), []).append(index)
        self._plain_prompts = [f" {plain(prompt)} " for prompt in self.prompts]
        self._all_text = "\0".join(
            self._plain_prompts
        )  # one search finds that a subject occurs in no prompt: the usual case

    def __len__(self) -> int:
        return len(self.prompts)

    def keys_of(self, prompt: int) -> Tensor:
        """The prepared keys (n, h) of one prompt and of its segments."""
        if self._keys_by_prompt is None:
            order = self._prompt_of_key.argsort(stable=True)
            self._keys_by_prompt = order.split(self._prompt_of_key.bincount(minlength=len(self)).tolist())
        return self.keys[self._keys_by_prompt[prompt]]

    def max_per_prompt(self, activations: Tensor, match_keys: Sequence[MatchKey]) -> Tensor:
        """The largest activation of one neuron on each guard prompt.

        Args:
            activations: The neuron's activation on each key of the split, (n,).
            match_keys: The edits that the neuron serves.

        Returns:
            Activations, (g,): the maximum over the segments of each prompt. -inf where the guard prompt is the edit's
            own prompt and, in a default guard, where it is a near prompt on the same subject: it may be the very
            question that the user corrects. `BLOCKED` where the subject filter blocks the edit, and for all prompts if
            the neuron's key is read with the subject masked.
        """
        if not self.prompts:
            return torch.empty(0)
        if self._masks_subjects and len(match_keys) == 1 and match_keys[0][1]:
            # The guard's keys were read with nothing masked: they say nothing of a neuron of a masked key.
            return torch.full((len(self.prompts),), BLOCKED)
        only = match_keys[0][1] if self._subject_filter and len(match_keys) == 1 else None
        named = self._prompts_naming(only) if only else torch.ones(len(self.prompts), dtype=torch.bool)
        if named.any():
            largest = max_per_prompt(activations[:, None], self._prompt_of_key, len(self.prompts))[:, 0]
            largest = largest.masked_fill(~named, BLOCKED)
        else:
            largest = torch.full((len(self.prompts),), BLOCKED)
        near = largest >= NEAR
        for prompt, subject in match_keys:
            excluded = torch.zeros(len(self.prompts), dtype=torch.bool)
            excluded[self._prompts_by_words.get(plain(prompt), [])] = True
            if not self._from_user and bool(near.any()):
                excluded |= near & torch.tensor(self.topics.overlapping(prompt, subject))
            largest = largest.masked_fill(excluded, -torch.inf)
        return largest

    def _prompts_naming(self, subject: str) -> Tensor:
        """Mask (g,) of the prompts that name a subject, as `plain` compares words."""
        name = f" {plain(subject)} "
        if name not in self._all_text:
            return torch.zeros(len(self.prompts), dtype=torch.bool)
        return torch.tensor([name in text for text in self._plain_prompts])
