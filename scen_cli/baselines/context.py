"""`MethodContext`: what a method has before its first edit, and what it computes once from that; and training texts.

Every answer of a comparison, of a base or of a method on it, is generated here in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from scen_cli.data.records import EditRecord
from scen_cli.editing.editor import Editor
from scen_cli.errors import UsageError
from scen_cli.model.base import Base
from scen_cli.model.ffn import EditedLayer, find_layer
from scen_cli.model.generation import context_length, generate_answers
from scen_cli.model.keys import positions_of
from scen_cli.model.template import Prompt, Template
from scen_cli.neurons.build_guard import unedited_prompts

IGNORED = -100  # the label of a token without loss
TEXTS_PER_PASS = 64
T = TypeVar("T")


def batched(items: Sequence[T], size: int = TEXTS_PER_PASS) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def padded_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (rows, tokens) of token sequences, padded on the right."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long), 1
    return ids.to(device), mask.to(device)


def run_texts(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits (rows, tokens, vocabulary) of whole texts, without a cache. Without a mask, texts must be padded on the
    right: causal attention then never reaches a pad."""
    options = {} if mask is None else {"attention_mask": mask, "position_ids": positions_of(mask)}
    return model(input_ids=ids, use_cache=False, **options).logits


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimizer step on this loss alone."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@dataclass(frozen=True)
class Examples:
    """Texts of a prompt and its target, padded on the right.

    Attributes:
        ids, mask: Token ids and attention mask (n, tokens).
        labels: (n, tokens) the next token where that belongs to the target (end token included), else `IGNORED`.
        lengths: (n,) tokens of the prompts.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, template: Template, pairs: Sequence[tuple[Prompt, str]], device: torch.device) -> Examples:
        """Raises `UsageError` for a target without tokens."""
        prompts = [template.prompt_ids(prompt) for prompt, _target in pairs]
        targets = [template.target_ids(str(prompt), target) for prompt, target in pairs]
        if not all(targets):
            raise UsageError(f"target {pairs[targets.index([])][1]!r} has no tokens")
        ids, mask = padded_right([a + b for a, b in zip(prompts, targets, strict=True)], device)
        labels = torch.full(ids.shape, IGNORED)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            labels[row, len(prompt) - 1 : len(prompt) + len(target) - 1] = torch.tensor(target)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return cls(ids, mask, labels.to(device), lengths.to(device))

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, rows: Sequence[int]) -> Examples:
        chosen = torch.tensor(rows, device=self.ids.device)
        return Examples(self.ids[chosen], self.mask[chosen], self.labels[chosen], self.lengths[chosen])

    @property
    def scored(self) -> Tensor:
        """Whether (n, tokens) a token carries loss."""
        return self.labels != IGNORED

    @property
    def prompts(self) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of the prompts alone, padded on the right."""
        width = int(self.lengths.max())
        mask = (torch.arange(width, device=self.ids.device) < self.lengths[:, None]).long()
        return self.ids[:, :width], mask

    def losses(self, logits: Tensor) -> Tensor:
        """The mean cross-entropy (n,) over each row's target and end token, of logits (n, tokens, vocabulary)."""
        each = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), self.labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view_as(self.labels)
        return each.sum(dim=1) / self.scored.sum(dim=1)

    def learned(self, logits: Tensor) -> Tensor:
        """Whether (n,) greedy decoding gives each row's target, token for token."""
        return ((logits.argmax(dim=-1) == self.labels) | ~self.scored).all(dim=1)


def kl_from_base(base_log_probs: Tensor, logits: Tensor) -> Tensor:
    """KL divergence of logits (n, vocabulary) from the base's log-probabilities (n, vocabulary), mean over n."""
    after = logits.float().log_softmax(dim=-1)
    return nn.functional.kl_div(after, base_log_probs, log_target=True, reduction="batchmean")


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
