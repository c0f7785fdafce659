"""What a method of editing is here: it fits edits, stands on a base, answers, and says what it costs.

Every method decides first and generates after, as scen itself does: what a prompt calls is found out from the prompt
(`answering`), and then holds for every forward of that sequence. Nothing is guessed from the length of a forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from scen_cli.baselines.generate import answer
from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError
from scen_cli.model.base import Base
from scen_cli.model.ffn import EditedLayer, find_layer
from scen_cli.model.keys import padded, positions_of
from scen_cli.model.template import Prompt, Template

READ_AT_ONCE = 64  # prompts


class Settings(BaseModel):
    """The numbers of one method, each with its source."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch: int | None = Field(1, ge=1, description="edits fitted at once; none: all there are")
    layer: int | None = Field(None, ge=0, description="decoder layer to edit; none: the one that is given")


@dataclass(frozen=True)
class MethodContext:
    """What a method has before the first edit: a base, the layer to edit, `prompts` that no edit claims, and
    `development` edits, which are none of those to come."""

    base: Base
    template: Template
    layer: int
    prompts: Sequence[str] = ()
    development: Sequence[EditRecord] = ()
    seed: int = 0
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # what is the same for all edits

    @property
    def unedited(self) -> list[tuple[str, str]]:
        """The prompts with the base's greedy answers, generated when first asked for; without those that take up the
        base's context together."""
        if "unedited" not in self.kept:
            answers = answer(self.base, self.template, self.prompts)
            pairs = zip(self.prompts, answers, strict=True)
            self.kept["unedited"] = [pair for pair in pairs if self.has_room(*pair)]
        known: list[tuple[str, str]] = self.kept["unedited"]
        return known

    def has_room(self, prompt: Prompt, target: str) -> bool:
        """Whether the base's context holds a prompt with its target."""
        context = getattr(self.base.model.config, "max_position_embeddings", None) or 10**9
        tokens = len(self.template.prompt_ids(prompt)) + len(self.template.target_ids(str(prompt), target))
        return tokens <= context

    def layers(self, count: int) -> list[EditedLayer]:
        """So many decoder layers in a row, the last of them the one to edit. Raises `UsageError` if there are fewer."""
        first = self.layer - count + 1
        if first < 0:
            raise UsageError(f"{count} layers up to layer {self.layer} are not there")
        return [find_layer(self.base.model, index) for index in range(first, self.layer + 1)]


@dataclass(frozen=True)
class Cost:
    """What a method keeps: its parameters, and the bytes of those and of all else."""

    parameters: int
    bytes: int

    @classmethod
    def of(cls, *tensors: Tensor) -> Cost:
        numbers = sum(one.numel() for one in tensors if one.is_floating_point())
        return cls(numbers, sum(one.numel() * one.element_size() for one in tensors))


class Method(ABC):
    """One method on one base. `fit` takes edits in consecutive batches; `attach` puts what was learned on the base,
    `detach` leaves the base as it was, bit for bit. A method is fitted attached or not, and stays as it was."""

    name: ClassVar[str]
    settings_type: ClassVar[type[Settings]] = Settings
    any_base: ClassVar[bool] = False  # whether a base may be quantised, or spread over devices

    def __init__(self, given: MethodContext, settings: Settings) -> None:
        self.given = given if settings.layer is None else replace(given, layer=settings.layer)
        self.settings = settings
        self.base, self.template, self.model = given.base, given.template, given.base.model
        self.attached = False

    def prepare(self) -> None:
        """What is done once, before the first edit, unless a state is loaded."""
        return

    @abstractmethod
    def fit(self, edits: Sequence[EditRecord]) -> None:
        """Learn a batch of edits, beside all that were learned before."""

    def cost(self) -> Cost:
        """What is kept beside the base, or in place of a part of it, to answer and to learn on: all of `state`."""
        return Cost.of(*(one for name, one in self.state().items() if name != "random"))

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that was learned, as tensors, for `load`."""

    @abstractmethod
    def load(self, state: dict[str, Tensor]) -> None:
        """Put what was learned in place of what is there."""

    def attach(self) -> None:
        self.attached = True

    def detach(self) -> None:
        self.attached = False

    def why(self, _prompt: str) -> str:
        """What it makes of a prompt, in words, while it is attached."""
        return "its weights answer every prompt"

    def answering(self, ids: Tensor, mask: Tensor) -> Any:
        """A block whose forwards are of these prompts (rows, tokens), or of what follows them; what they call is
        decided as it begins."""
        return nullcontext()

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The tokens that are asked for a prompt."""
        return self.template.prompt_ids(prompt)

    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """What transformers' `generate` gives for these prompts, edits and all."""
        with self.answering(ids, mask):
            out: Tensor = self.model.generate(input_ids=ids, attention_mask=mask, **options)
        return out

    def logits(self, prompts: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor]) -> Tensor:
        """Logits (rows, tokens, vocabulary) of texts (ids, mask) that begin with these prompts (ids, mask)."""
        ids, mask = texts
        with self.answering(*prompts):
            out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask), use_cache=False)
        logits: Tensor = out.logits
        return logits

    @torch.no_grad()
    def read(self, prompts: Sequence[str], width: int, how: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A vector (n, width) for each prompt: what `how` gives for ids and mask (rows, tokens), some at a time."""
        found = [torch.empty(0, width, device=self.base.device)]
        for start in range(0, len(prompts), READ_AT_ONCE):
            rows = [self.template.prompt_ids(prompt) for prompt in prompts[start : start + READ_AT_ONCE]]
            found.append(how(*(one.to(self.base.device) for one in padded(rows, self.template.end_id))))
        return torch.cat(found)

    def encode(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (rows, tokens), padded on the left."""
        ids, mask = padded([self.prompt_ids(prompt) for prompt in prompts], self.template.end_id)
        return ids.to(self.base.device), mask.to(self.base.device)


@contextmanager
def attached(method: Method, wanted: bool = True) -> Iterator[None]:
    """Inside this block the method stands on its base, or does not; after it, it is as it was before."""
    before = method.attached
    if before != wanted:
        (method.attach if wanted else method.detach)()
    try:
        yield
    finally:
        if before != wanted:
            (method.detach if wanted else method.attach)()


@dataclass
class Sequences:
    """Prompts under way: how many real tokens each has (rows,), and what the method decided of them. `positions`
    (rows, tokens) of the forward that runs just now."""

    lengths: Tensor
    decided: Any
    positions: Tensor | None = None
    owner: object = field(default=None, repr=False)


_current: ContextVar[Sequences | None] = ContextVar("scen_rival_sequences", default=None)


class HookMethod(Method):
    """A method that stands on the base by hooks. They act inside `answering` alone, in this thread or task."""

    def __init__(self, given: MethodContext, settings: Settings) -> None:
        super().__init__(given, settings)
        self._handles: list[Any] = []

    @abstractmethod
    def hooks(self) -> list[Any]:
        """Register what is to run on the base's modules; returns the handles."""

    @abstractmethod
    def decide(self, ids: Tensor, mask: Tensor) -> Any:
        """What these prompts call."""

    def attach(self) -> None:
        if not self.attached:
            self._handles = [self.model.base_model.register_forward_pre_hook(_note_positions, with_kwargs=True)]
            self._handles += self.hooks()
        super().attach()

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        super().detach()

    @contextmanager
    def answering(self, ids: Tensor, mask: Tensor) -> Iterator[None]:
        if not self.attached:
            yield
            return
        with self.carrying(mask.sum(dim=1), self.decide(ids, mask)):
            yield

    @contextmanager
    def carrying(self, lengths: Tensor, decided: Any) -> Iterator[None]:
        """Inside this block forwards go by what was `decided`."""
        token = _current.set(Sequences(lengths, decided, owner=self))
        try:
            yield
        finally:
            _current.reset(token)

    def under_way(self) -> Sequences | None:
        """The sequences of the block that this method's hooks run in, if there is one."""
        current = _current.get()
        return current if current is not None and current.owner is self else None


def _note_positions(_model: nn.Module, _args: Any, options: dict[str, Any]) -> None:
    current = _current.get()
    if current is not None:
        current.positions = options.get("position_ids")


def per_row(tensor: Tensor, rows: int) -> Tensor:
    """A tensor with an entry for each sequence, for a batch that holds each of them k times in a row (beams)."""
    if rows % len(tensor):
        raise ValueError(f"{len(tensor)} sequences are under way, not {rows}")
    return tensor.repeat_interleave(rows // len(tensor), dim=0)


def make_settings(settings_type: type[Settings], changes: dict[str, Any]) -> Settings:
    """Settings with some of them changed. Raises `UsageError` for one that is not there or out of range."""
    try:
        return settings_type.model_validate(changes)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        known = ", ".join(settings_type.model_fields)
        raise UsageError(f"setting `{name}`: {problem['msg']}", hint=f"settings: {known}") from error
