"""`PatchedModel`: a project's edits on its loaded base. Routes prompts, generates, answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from scen_cli.editing.expert_bank import ProjectPatch
from scen_cli.editing.project_editor import ProjectEditor
from scen_cli.errors import Quarantined, UsageError
from scen_cli.model.base import Base
from scen_cli.model.generation import BATCH, MAX_NEW_TOKENS, Answers, generate_answers
from scen_cli.model.patch import Patch
from scen_cli.model.routing import Routing
from scen_cli.model.template import Prompt
from scen_cli.neurons.build_guard import key_config_of, read_segment_keys, whitening_in
from scen_cli.project.project import Project
from scen_cli.recipe import stored_recipe

# The model that stays steady in this thread or task, and the patch it stays with.
_snapshot: ContextVar[tuple[PatchedModel, ProjectPatch] | None] = ContextVar("scen_steady", default=None)


@dataclass(frozen=True)
class RouteResult:
    """Which edit each prompt calls (None: the base), and `activations` (rows, t) of the neurons of
    the experts `active`, column by column. An expert that edits share is called by the first of them."""

    edits: list[int | None]
    activations: Tensor
    active: list[int]


class PatchedModel(ProjectEditor):
    """A project's base, loaded, with the active edits. `detach()` leaves the base as it was.

    An active edit whose file is damaged is quarantined: the base answers what it would have answered, the other edits
    go on, and `warn` is told (it warns `Quarantined`, unless another function takes its place).
    """

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        if project.method is not None:
            raise UsageError(f"this project edits by `{project.method}`", hint="`MethodEditor` opens it")
        super().__init__(project, device, base)
        self.recipe = stored_recipe(project.settings)
        guard = project.guard() if self.recipe.index == "closed-form" else None
        self._whitening = whitening_in(guard) if guard else None
        key_config = key_config_of(self.template, self.recipe)
        self.routing = Routing(project.ledger.theta(), self.recipe.cosine, key_config)
        self.warn: Callable[[str], None] = _warn  # is told of each edit that is active but damaged
        self._patch: ProjectPatch | None = None
        self._lock = RLock()  # of `_patch`: threads may answer at once

    def keys(self, prompts: Sequence[Prompt]) -> Tensor:
        """The keys (n, h) of prompts, each read as a whole, float32, on the CPU."""
        if not prompts:
            return torch.empty(0, self.edited.ffn_width)
        whole = replace(self.routing.key_config, segments=False)
        return torch.cat(
            [read_segment_keys(self.base, self.edited, [ids], whole)[0] for ids in self.prompt_ids(prompts)]
        )

    def patch(self) -> ProjectPatch:
        """The active edits, attached to the base; made anew when the ledger has changed."""
        snapshot = _snapshot.get()
        if snapshot is not None and snapshot[0] is self:
            return snapshot[1]
        with self._lock:
            change, theta = self.project.ledger.last_change(), self.project.ledger.theta()
            if self._patch is None or (change, theta) != (self._patch.last_change, self._patch.theta):
                self.detach()
                routing = replace(self.routing, theta=theta, own_activation_floor=self._own_activation_floor())
                looks = self.template if self.recipe.subject_filter else None
                self._patch = ProjectPatch(
                    self.project, self.edited, routing, self._whitening, looks, lambda text: self.warn(text)
                )
            return self._patch

    def _own_activation_floor(self) -> float:
        """The least that an active edit gives its own neuron, where neurons stay as they are once made."""
        if self.recipe.index != "closed-form":
            return 0.0
        return self.project.ledger.min_own_activation() or 0.0

    @contextmanager
    def snapshot(self) -> Iterator[ProjectPatch]:
        """Inside this block, in this thread or task, the edits are active those at its start,
        whatever is committed meanwhile."""
        with ExitStack() as stack:
            with self._lock:  # nobody detaches the patch between its making and its keeping
                patch = self.patch()
                stack.enter_context(patch.kept())
            token = _snapshot.set((self, patch))
            try:
                yield patch
            finally:
                _snapshot.reset(token)

    def detach(self) -> None:
        """Leave the base as it was loaded."""
        with self._lock:
            if self._patch is not None:
                self._patch.detach()
            self._patch = None

    def route(self, prompts: Sequence[Prompt]) -> RouteResult:
        """Which edit each prompt calls."""
        return self._route(*self.encode(prompts))

    def route_ids(self, rows: Sequence[Sequence[int]]) -> RouteResult:
        """Which edit each token sequence calls, read at its last token."""
        return self._route(*self.pad(rows))

    def _route(self, ids: Tensor, mask: Tensor) -> RouteResult:
        patch = self.patch()
        route = patch.route(self.model, ids, mask)
        return RouteResult(patch.edits_of(route.choice), route.activations, patch.edits)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        edits: Sequence[int | None] | None = None,
        **options: Any,
    ) -> Any:
        """transformers' `generate` on the patched model, any decoding mode.

        Each row is routed by its prompt, or by `edits`: an edit's id for each row, None for the base.
        """
        with self.snapshot() as patch:
            choice = None if edits is None else patch.rows_of(edits)
            return self.generate_with(patch, input_ids, attention_mask, choice, **options)[0]

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        patched: bool = True,
        edits: Sequence[int | None] | None = None,
        **options: Any,
    ) -> Answers:
        """Greedy answers, or as `options` for `generate` say.

        By the patched model; with `patched=False` by the base alone; with `edits` (an edit's id or
        None for each prompt) by those edits' experts, whatever the neurons say. Where there are full
        experts, all are decided first and generated in batches of few experts, so that each is read once.
        """
        if edits is not None and len(edits) != len(prompts):
            raise UsageError(f"{len(prompts)} prompts need {len(prompts)} edits, not {len(edits)}")
        chosen_by_caller = edits is not None or not patched
        rows = self.prompt_ids(prompts)
        with self.snapshot() as patch:
            if not patched:
                edits = [None] * len(prompts)
            elif edits is None and patch.full_at_once:
                chunks = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
                edits = [edit for chunk in chunks for edit in self.route_ids(chunk).edits]
            answered_by = list(edits or [None] * len(prompts))

            def generate(batch: list[int], ids: Tensor, mask: Tensor, how: dict[str, Any]) -> Tensor:
                choice = None if edits is None else patch.rows_of([edits[index] for index in batch])
                out, choice = self.generate_with(patch, ids, mask, choice, **how)
                if not chosen_by_caller:
                    for index, edit in zip(batch, patch.edits_of(choice), strict=True):
                        answered_by[index] = edit
                ids_with_answers: Tensor = out
                return ids_with_answers

            options = {"max_new_tokens": self.longest_answer(), **options}
            per_batch = patch.full_at_once or BATCH
            tokens = generate_answers(
                self.base, self.template, rows, generate, edits=edits, edits_per_batch=per_batch, **options
            )
        return Answers([self.template.answer(answer) for answer in tokens], answered_by, tokens)

    def generate_with(
        self, patch: Patch, ids: Tensor, mask: Tensor | None, choice: Tensor | None, **options: Any
    ) -> tuple[Any, Tensor]:
        """What `generate` gives with a patch on this base, and the choice it went by."""
        options = {"pad_token_id": self.pad_id, "eos_token_id": list(self.template.end_ids), **options}
        return patch.generate(self.model, self.model.generate, ids, mask, choice, **options)

    def longest_answer(self) -> int:
        """Tokens to allow an answer: `MAX_NEW_TOKENS`, or what the longest target of the active edits takes.
        The same for every prompt, whoever answers it: so that a longer answer is never just a later stop."""
        patch = self.patch()
        if patch.longest_answer is None:
            long = self.project.ledger.long_targets(MAX_NEW_TOKENS // 2)  # no token stands for less than half a byte
            lengths = [len(self.template.target_ids(prompt, target)) for prompt, target in long]
            patch.longest_answer = max([MAX_NEW_TOKENS, *lengths])
        return patch.longest_answer


def _warn(text: str) -> None:
    warnings.warn(text, Quarantined, stacklevel=2)
