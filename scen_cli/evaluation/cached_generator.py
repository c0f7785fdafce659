"""Answers by prompt and expert, and activations by prompt: each is computed once, answers also across evaluations.

An answer depends on the prompt and on the expert that gives it, and on nothing else. What an edited model answers at
any threshold, after any number of edits, is therefore a choice among answers that were generated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from scen_cli.editing.patched_model import PatchedModel
from scen_cli.editing.project_patch import ProjectPatch
from scen_cli.evaluation.stored_answers import Question, StoredAnswers
from scen_cli.model.generation import BATCH, Progress, no_progress
from scen_cli.model.routing import choose
from scen_cli.model.template import Prompt

LIMIT_STEP = 8  # tokens

_Item = tuple[Prompt, int | None, int | None]  # a prompt, the expert that answers (None: the base), a limit of tokens


class CachedGenerator:
    """Answers of a patched model whose edits do not change while it is in use.

    Args:
        patched: The model.
        patch: Its active edits.
        options: Options of `generate`.
        progress: Called with the number of prompts that were routed or answered so far, and of all that are known of.
    """

    def __init__(
        self,
        patched: PatchedModel,
        patch: ProjectPatch,
        options: dict[str, Any],
        progress: Progress = no_progress,
    ) -> None:
        self.patched, self.patch, self._options, self._progress = patched, patch, options, progress
        self._tokens: dict[_Item, list[int]] = {}
        self._activations: dict[Prompt, Tensor] = {}
        self._stored = StoredAnswers(patched, patch)

    def activations(self, prompts: Sequence[Prompt]) -> Tensor:
        """Activations (prompts, t) of all active neurons, on the CPU."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._activations]
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            self._activations.update(zip(batch, self.patched.route(batch).activations.cpu(), strict=True))
            self._report(len(new) - start - len(batch))
        if not prompts:
            return torch.empty(0, len(self.patch.edits))
        return torch.stack([self._activations[prompt] for prompt in prompts])

    def route(self, prompts: Sequence[Prompt], first: int | None = None) -> list[int | None]:
        """The expert of each prompt (None: the base); with `first`, as if only the first experts existed."""
        return self.patch.edits_of(choose(self.activations(prompts)[:, :first], self.patch.theta))

    def strongest(self, prompts: Sequence[Prompt]) -> list[tuple[int | None, float]]:
        """Each prompt's expert with the largest activation, whatever the threshold, and that activation."""
        if not self.patch.edits:
            return [(None, 0.0)] * len(prompts)
        largest, rows = self.activations(prompts).nan_to_num(nan=-torch.inf).max(dim=1)
        return list(zip(self.patch.edits_of(rows), largest.tolist(), strict=True))

    def tokens(
        self,
        prompts: Sequence[Prompt],
        experts: Sequence[int | None],
        limits: Sequence[int | None] | None = None,
    ) -> list[list[int]]:
        """The tokens that an expert, or the base (None), generates for each prompt, up to the end token.

        Args:
            prompts: The prompts.
            experts: Who answers each.
            limits: How many tokens of each answer are needed at most; None: all. An answer may have more.
        """
        greedy = "num_beams" not in self._options  # a beam search that stops earlier finds another answer
        needed = limits if limits and greedy else [None] * len(prompts)
        wanted = [self._cached(*item) for item in zip(prompts, experts, needed, strict=True)]
        unknown = [item for item in dict.fromkeys(wanted) if item not in self._tokens]
        stored = self._stored.find([self._question(*item) for item in unknown])
        self._tokens |= {item: answer for item, answer in zip(unknown, stored, strict=True) if answer is not None}
        new: dict[int | None, list[_Item]] = {}
        for item in unknown:
            if item not in self._tokens:
                new.setdefault(item[2], []).append(item)
        left = sum(map(len, new.values()))
        for limit, items in new.items():
            items.sort(key=lambda item: (item[1] or 0, len(str(item[0]))))  # answers of one expert, of similar length
            for start in range(0, len(items), BATCH):
                part = items[start : start + BATCH]
                how = self._how(limit)
                answers = self.patched.answer([p for p, *_ in part], edits=[e for _, e, _ in part], **how).tokens
                self._stored.put([self._question(*item) for item in part], answers)
                self._tokens.update(zip(part, answers, strict=True))
                left -= len(part)
                self._report(left)
        return [self._tokens[item] for item in wanted]

    def _how(self, limit: int | None) -> dict[str, Any]:
        """Options of `generate` for an answer with this limit."""
        return {"max_new_tokens": self.patched.longest_answer() if limit is None else limit, **self._options}

    def _question(self, prompt: Prompt, expert: int | None, limit: int | None) -> Question:
        return self.patched.prompt_ids([prompt])[0], expert, self._how(limit)

    def _report(self, left: int) -> None:
        done = len(self._activations) + len(self._tokens)
        self._progress(done, done + left)

    def _cached(self, prompt: Prompt, expert: int | None, limit: int | None) -> _Item:
        """The same answer without a limit, if it is known; otherwise with the limit rounded up: fewer batches."""
        if limit is None or (prompt, expert, None) in self._tokens:
            return prompt, expert, None
        return prompt, expert, -(-limit // LIMIT_STEP) * LIMIT_STEP

    def texts(
        self,
        prompts: Sequence[Prompt],
        experts: Sequence[int | None],
        limits: Sequence[int | None] | None = None,
    ) -> list[str]:
        """The same as texts, which are compared with targets."""
        return [self.patched.template.answer(tokens) for tokens in self.tokens(prompts, experts, limits)]
