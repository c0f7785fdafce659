"""`PatchedModel`: a project's base with the active edits on it. It routes prompts, generates and answers."""

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

from scen_cli.data.records import EditRecord
from scen_cli.editing.loaded_project import LoadedProject
from scen_cli.editing.project_patch import ProjectPatch
from scen_cli.errors import Quarantined, UsageError
from scen_cli.model.base import Base
from scen_cli.model.batched_keys import read_segment_keys
from scen_cli.model.generation import BATCH, Answers, generate_answers
from scen_cli.model.keys import Span
from scen_cli.model.patch import Patch
from scen_cli.model.routing import Routing
from scen_cli.model.template import Prompt
from scen_cli.neurons.build_guard import key_config_of, whitening_in
from scen_cli.project.project import Project
from scen_cli.recipe import stored_recipe

# The model whose edits are fixed in this thread or task, and its patch.
_snapshot: ContextVar[tuple[PatchedModel, ProjectPatch] | None] = ContextVar("scen_snapshot", default=None)


@dataclass(frozen=True)
class RouteResult:
    """How prompts are routed.

    Attributes:
        edits: The edit of each prompt; None for the base. Edits that share an expert are named by the first of them.
        activations: Activations (prompts, t) of the active neurons.
        active: The edit of each column of `activations`.
    """

    edits: list[int | None]
    activations: Tensor
    active: list[int]


class PatchedModel(LoadedProject):
    """A project's base, loaded, with the active edits. `detach()` restores the base.

    The base answers for an active edit whose file is damaged; the other edits keep working. `warn` is called with a
    message then. It issues a `Quarantined` warning, unless it is replaced.
    """

    def __init__(self, project: Project, device: str = "auto", base: Base | None = None) -> None:
        """Raises `UsageError` for a project that edits by another method."""
        if project.method is not None:
            raise UsageError(f"this project edits by `{project.method}`", hint="open it with `MethodEditor`")
        super().__init__(project, device, base)
        self.recipe = stored_recipe(project.settings)
        guard = project.guard() if self.recipe.index == "closed-form" else None
        self._whitening = whitening_in(guard) if guard else None
        key_config = key_config_of(self.template, self.recipe)
        self.routing = Routing(project.ledger.theta(), self.recipe.cosine, key_config)
        self.warn: Callable[[str], None] = _warn
        self._patch: ProjectPatch | None = None
        self._lock = RLock()  # guards `_patch`: several threads may answer

    def keys(self, prompts: Sequence[Prompt], names: Sequence[str] = ()) -> Tensor:
        """The keys (n, h) of whole prompts, float32, on the CPU.

        Where the recipe masks subjects, the subject with these `names` is masked in the prompts.
        """
        if not prompts:
            return torch.empty(0, self.edited.ffn_width)
        whole = replace(self.routing.key_config, segments=False)
        self.prompt_ids(prompts)  # raises for a prompt that does not fit
        rows = [self.key_tokens(prompt, names) for prompt in prompts]
        return torch.cat([read_segment_keys(self.base, self.edited, [ids], whole)[0] for ids in rows])

    def key_tokens(self, prompt: Prompt, names: Sequence[str]) -> list[int]:
        """The tokens at whose end an edit's key is read: the prompt in the template, with its subject masked if the
        recipe does so."""
        ids = self.template.prompt_ids(prompt)
        masked = self.masked_tokens(ids, names) if self.recipe.masks_subjects else None
        return masked or ids

    def masked_tokens(self, ids: list[int], names: Sequence[str]) -> list[int] | None:
        """A prompt's tokens with the subject of these names masked; None if its last sentence does not name it."""
        spans = self.template.spans_of(names, ids)
        segments = self.routing.key_config.masked_segments_of(ids, spans) if spans else []
        return segments[0] if segments else None

    def names_of(self, record: EditRecord) -> tuple[str, ...]:
        """The names by which prompts are routed to a record's edit: those of its subject. None unless its prompt and
        its training rephrases all name it, and, where the recipe masks subjects, do so in their last sentence."""
        name = self.template.visible(record.subject or "")
        names = (name,) if name else ()
        prompts = [self.template.prompt_ids(prompt) for prompt in (record.prompt, *record.train_rephrases)]
        found = self.masked_tokens if self.recipe.masks_subjects else self._spans_of
        return names if all(found(ids, names) for ids in prompts) else ()

    def _spans_of(self, ids: list[int], names: Sequence[str]) -> list[Span]:
        return self.template.spans_of(names, ids)

    def patch(self) -> ProjectPatch:
        """The active edits, attached to the base; rebuilt when the ledger has changed or a damaged file is repaired."""
        snapshot = _snapshot.get()
        if snapshot is not None and snapshot[0] is self:
            return snapshot[1]
        with self._lock:
            change, theta = self.project.ledger.last_change(), self.project.ledger.theta()
            current = self._patch is not None and (change, theta) == (self._patch.last_change, self._patch.theta)
            if self._patch is None or not current or self._patch.is_outdated():
                self.detach()
                # Only closed-form neurons keep their weights, so that their own activations are a lower bound.
                fixed = self.recipe.index == "closed-form"
                floor = (self.project.ledger.min_own_activation() if fixed else None) or 0.0
                self._patch = ProjectPatch(
                    self.project,
                    self.edited,
                    replace(self.routing, theta=theta, own_activation_floor=floor),
                    self._whitening,
                    self.template.pieces if self.recipe.subject_filter else None,
                    lambda text: self.warn(text),
                )
            return self._patch

    @contextmanager
    def snapshot(self) -> Iterator[ProjectPatch]:
        """Inside this block, in this thread or task, the active edits are those at its start, whatever is committed."""
        with ExitStack() as stack:
            with self._lock:  # no other thread may detach the patch before it is kept
                patch = self.patch()
                stack.enter_context(patch.kept())
            token = _snapshot.set((self, patch))
            try:
                yield patch
            finally:
                _snapshot.reset(token)

    def detach(self) -> None:
        """Restore the base, bit for bit."""
        with self._lock:
            if self._patch is not None:
                self._patch.detach()
            self._patch = None

    def route(self, prompts: Sequence[Prompt]) -> RouteResult:
        """Find the edit of each prompt (equations 10 to 12)."""
        return self._route(*self.encode(prompts))

    def route_ids(self, rows: Sequence[Sequence[int]]) -> RouteResult:
        """Find the edit of each token sequence, by the key at its last token."""
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
        """transformers' `generate` on the patched model, in any decoding mode.

        Args:
            input_ids: Prompts, (rows, tokens).
            attention_mask: Their mask, (rows, tokens).
            edits: The edit whose expert answers each row, None for the base. Without it each row is routed.
            **options: Options of `generate`.
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
        """Answer prompts, greedily unless `options` of `generate` say otherwise.

        Args:
            prompts: The prompts, without the template.
            patched: False: the base answers.
            edits: The edit whose expert answers each prompt, None for the base. Without it each prompt is routed.
            **options: Options of `generate`.

        Raises:
            UsageError: A prompt does not fit, or an edit is not active.
        """
        if edits is not None and len(edits) != len(prompts):
            raise UsageError(f"{len(prompts)} prompts need {len(prompts)} edits, not {len(edits)}")
        routed_here = patched and edits is None
        rows = self.prompt_ids(prompts)
        with self.snapshot() as patch:
            if not patched:
                edits = [None] * len(prompts)
            elif edits is None and patch.full_at_once:
                # Route first, so that each full expert is read from disk once: batches are made of few experts.
                chunks = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
                edits = [edit for chunk in chunks for edit in self.route_ids(chunk).edits]
            answered_by = list(edits or [None] * len(prompts))

            def generate(batch: list[int], ids: Tensor, mask: Tensor, how: dict[str, Any]) -> Tensor:
                choice = None if edits is None else patch.rows_of([edits[row] for row in batch])
                out, choice = self.generate_with(patch, ids, mask, choice, **how)
                if routed_here:
                    for row, edit in zip(batch, patch.edits_of(choice), strict=True):
                        answered_by[row] = edit
                sequences: Tensor = out
                return sequences

            options = {"max_new_tokens": self.longest_answer(), **options}
            per_batch = patch.full_at_once or BATCH
            tokens = generate_answers(
                self.base, self.template, rows, generate, edits=edits, edits_per_batch=per_batch, **options
            )
        return Answers([self.template.answer(answer) for answer in tokens], answered_by, tokens)

    def generate_with(
        self, patch: Patch, ids: Tensor, mask: Tensor | None, choice: Tensor | None, **options: Any
    ) -> tuple[Any, Tensor]:
        """`generate` with any patch on this base; returns its output and the choice (rows,) of experts."""
        options = {"pad_token_id": self.pad_id, "eos_token_id": list(self.template.end_ids), **options}
        return patch.generate(self.model, self.model.generate, ids, mask, choice, **options)

    def longest_answer(self, pairs: Sequence[tuple[str, str]] = ()) -> int:
        patch = self.patch()  # the value is kept with it: it changes with the active edits alone
        if pairs or patch.longest_answer is None:
            longest = super().longest_answer(pairs)
            patch.longest_answer = patch.longest_answer if pairs else longest
            return longest
        return patch.longest_answer

    def explain(self, prompt: str) -> str:
        """Why the patched model answers a prompt as it does, in a sentence."""
        [edit] = self.answer([prompt], max_new_tokens=1).edits
        return "no edit was activated: the base answers" if edit is None else f"edit {edit} was activated"


def _warn(text: str) -> None:
    warnings.warn(text, Quarantined, stacklevel=2)
