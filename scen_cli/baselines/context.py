"""`MethodContext`: what a method has before its first edit, and what it computes once from that.

Every answer of a comparison, of a base or of a method on it, is generated here in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from scen_cli.baselines.training_examples import Examples
from scen_cli.data.records import EditRecord
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.model.base import Base
from scen_cli.model.ffn import EditedLayer, find_layer
from scen_cli.model.generation import context_length, generate_answers
from scen_cli.model.template import Prompt, Template
from scen_cli.neurons.build_guard import unedited_prompts


class Generates(Protocol):
    """A method on a base, as far as answers need it."""

    def prompt_ids(self, prompt: Prompt) -> list[int]: ...

    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor: ...


def answer_tokens(
    base: Base, template: Template, prompts: Sequence[Prompt], method: Generates | None = None, **options: Any
) -> list[list[int]]:
    """Generated tokens of a method as it is attached, or of the base alone; greedy unless `options` say otherwise."""
    rows = [(method or template).prompt_ids(prompt) for prompt in prompts]

    @torch.no_grad()
    def generate(_batch: list[int], ids: Tensor, mask: Tensor, how: dict[str, Any]) -> Tensor:
        if method is not None:
            return method.generate(ids, mask, **how)
        out: Tensor = base.model.generate(input_ids=ids, attention_mask=mask, **how)
        return out

    return generate_answers(base, template, rows, generate, **options)


def answer(
    base: Base, template: Template, prompts: Sequence[Prompt], method: Generates | None = None, **options: Any
) -> list[str]:
    """The same as texts."""
    return [template.answer(tokens) for tokens in answer_tokens(base, template, prompts, method, **options)]


T = TypeVar("T")


@dataclass(frozen=True)
class MethodContext:
    """What a method has before its first edit.

    Attributes:
        base: The base to edit.
        template: How prompts are put to the base.
        layer: The decoder layer to edit (0-based).
        prompts: Prompts that no edit claims.
        development: Edits to train on; none of them is edited later.
        seed: Seeds all random numbers.
        cache: Results that are the same for all edits, by key (see `cached`).
    """

    base: Base
    template: Template
    layer: int
    prompts: Sequence[str] = ()
    development: Sequence[EditRecord] = ()
    seed: int = 0
    cache: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` returns; computed once for each key."""
        if key not in self.cache:
            self.cache[key] = compute()
        return self.cache[key]

    @property
    def unedited(self) -> list[tuple[str, str]]:
        """`prompts` with the base's greedy answers, without the pairs that are too long for the base's context."""

        def compute() -> list[tuple[str, str]]:
            answers = answer(self.base, self.template, self.prompts)
            return [pair for pair in zip(self.prompts, answers, strict=True) if self.has_room(*pair)]

        return self.cached("unedited", compute)

    @property
    def known_answers(self) -> list[tuple[str, str]]:
        """The pairs of `unedited` whose answer is not empty."""
        return [pair for pair in self.unedited if pair[1]]

    def check_training_data(self, method: str) -> None:
        """Raise `UsageError` if there are no development edits or no unedited prompts with an answer."""
        if not self.development or not self.known_answers:
            raise UsageError(f"{method} is trained on development edits and unedited prompts: both are needed")

    def examples(self, pairs: Sequence[tuple[Prompt, str]]) -> Examples:
        """Prompts with their targets as training texts, on the base's device."""
        return Examples.of(self.template, pairs, self.base.device)

    def has_room(self, prompt: Prompt, target: str) -> bool:
        """Whether a prompt and its target fit the base's context."""
        tokens = len(self.template.prompt_ids(prompt)) + len(self.template.target_ids(str(prompt), target))
        context = context_length(self.base.model)
        return not context or tokens <= context

    def layers(self, count: int) -> list[EditedLayer]:
        """`count` consecutive decoder layers that end with the edited one. Raises `UsageError` if there are fewer."""
        first = self.layer - count + 1
        if first < 0:
            raise UsageError(f"{count} layers are too many: layer {self.layer} is the last of {self.layer + 1} layers")
        return [find_layer(self.base.model, index) for index in range(first, self.layer + 1)]


def project_context(editor: Editor) -> MethodContext:
    """The base, template, layer and seed of a project, with the prompts of its guard; without a guard, with prompts
    that the base writes. Raises `UsageError` if the base writes none."""
    seed = int(editor.project.settings["seed"])
    guard = [prompt.prompt for prompt in editor.project.ledger.guard()]
    prompts = guard or unedited_prompts(editor.base, editor.template, seed, None)
    return MethodContext(editor.base, editor.template, editor.edited.index, prompts, seed=seed)
