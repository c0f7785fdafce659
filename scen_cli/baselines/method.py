"""The interface of an editing method: `fit` edits, `attach` to the base, generate, `cost`, `state` and `load`.

A method decides before it generates, as SCEN does: inside `answering` it reads the prompts and decides which edits
apply to them; every forward pass of these sequences follows that decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from scen_cli.baselines.context import Examples, MethodContext, batched, run_texts
from scen_cli.data.records import EditRecord
from scen_cli.errors import UsageError
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.keys import padded, read_keys
from scen_cli.model.template import Prompt


class Settings(BaseModel):
    """The settings of one method. A description names the source of the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch: int | None = Field(1, ge=1, description="edits fitted together; none: all of them")
    layer: int | None = Field(None, ge=0, description="decoder layer to edit; none: the project's")


def make_settings(settings_type: type[Settings], changes: Mapping[str, Any]) -> Settings:
    """Settings with some of the defaults changed. Raises `UsageError` for an unknown name or an invalid value."""
    try:
        return settings_type.model_validate(changes)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        known = ", ".join(settings_type.model_fields)
        raise UsageError(f"setting `{name}`: {problem['msg']}", hint=f"settings: {known}") from error


@dataclass(frozen=True)
class Cost:
    """What a method stores: the number of its parameters, and the bytes of everything."""

    parameters: int
    bytes: int

    @classmethod
    def of(cls, *tensors: Tensor) -> Cost:
        parameters = sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
        return cls(parameters, sum(tensor.numel() * tensor.element_size() for tensor in tensors))


class Method(ABC):
    """One method on one base.

    `fit` learns edits in consecutive batches. `attach` applies what was learned to the base, and `detach` restores
    the base bit for bit. `fit` works in both states and leaves the state as it was.
    """

    name: ClassVar[str]
    settings: Settings  # a subclass narrows the type
    any_base: ClassVar[bool] = False  # whether the base may be quantised or spread over devices
    settings_type: ClassVar[type[Settings]]  # the type of `settings`

    def __init_subclass__(cls) -> None:
        cls.settings_type = get_type_hints(cls)["settings"]

    def __init__(self, context: MethodContext, settings: Settings) -> None:
        self.context = context if settings.layer is None else replace(context, layer=settings.layer)
        self.settings = settings
        self.base, self.template, self.model = context.base, context.template, context.base.model
        self.attached = False

    def prepare(self) -> None:
        """Compute what is needed before the first edit. Not called if a state is loaded."""
        return

    @abstractmethod
    def fit(self, edits: Sequence[EditRecord]) -> None:
        """Learn a batch of edits in addition to all earlier ones."""

    def state(self) -> dict[str, Tensor]:
        """Everything that was learned, as tensors for `load`."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Replace everything that was learned by a state. Raises `LookupError`, `ValueError` or `RuntimeError` if it
        is no state of this method with these settings."""
        return

    def loaded(self, state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> list[Tensor]:
        """The tensors of a state that `shapes` names, in that order, on the base's device. Raises `ValueError` if one
        has another shape."""
        for name, shape in shapes.items():
            if tuple(state[name].shape) != tuple(shape):
                raise ValueError(f"`{name}` has shape {list(state[name].shape)}, not {list(shape)}")
        return [state[name].to(self.base.device) for name in shapes]

    def cost(self) -> Cost:
        """The size of `state` without the state of the random generator."""
        return Cost.of(*(tensor for name, tensor in self.state().items() if name != "random"))

    def attach(self) -> None:
        self.attached = True

    def detach(self) -> None:
        self.attached = False

    def why(self, _prompt: str) -> str:
        """Explain in one line what answers a prompt while the method is attached."""
        return "its weights answer every prompt"

    def answering(self, ids: Tensor, mask: Tensor) -> AbstractContextManager[None]:
        """A block whose forward passes continue these prompts (rows, tokens). The decision which edits apply is taken
        when the block begins."""
        return nullcontext()

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return self.template.prompt_ids(prompt)

    def encode(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (rows, tokens) of prompts, padded on the left."""
        return self.pad_left([self.prompt_ids(prompt) for prompt in prompts])

    def pad_left(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask (rows, tokens) of token sequences, on the base's device."""
        ids, mask = padded(rows, self.template.end_id)
        return ids.to(self.base.device), mask.to(self.base.device)

    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Generate with transformers' `generate` and the edits that apply to these prompts."""
        with self.answering(ids, mask):
            return self.model.generate(input_ids=ids, attention_mask=mask, **options)

    def logits(self, prompts: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor]) -> Tensor:
        """Logits (rows, tokens, vocabulary) of texts (ids, mask) that begin with these prompts (ids, mask)."""
        with self.answering(*prompts):
            return run_texts(self.model, *texts)

    def examples(self, edits: Sequence[EditRecord]) -> Examples:
        """Edits' prompts with their targets as training texts."""
        return self.context.examples([(edit.prompt, edit.target) for edit in edits])

    @torch.no_grad()
    def read(self, prompts: Sequence[str], width: int, read_batch: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A vector (n, width) for each prompt; `read_batch` reads those of one batch (ids, mask)."""
        vectors = [read_batch(*self.encode(batch)) for batch in batched(prompts)]
        return torch.cat([torch.empty(0, width, device=self.base.device), *vectors])

    def mean_keys(self, layer: EditedLayer, prompts: Sequence[str]) -> Tensor:
        """The input of a layer's `down_proj` (n, h), float32, as a mean over each prompt's tokens."""

        def read_batch(ids: Tensor, mask: Tensor) -> Tensor:
            return read_keys(self.model, layer.down_proj, ids, mask, "mean")

        return self.read(prompts, layer.ffn_width, read_batch)


@contextmanager
def attached(method: Method, wanted: bool = True) -> Iterator[None]:
    """Inside this block the method is attached (or detached, if not `wanted`). Afterwards it is as before."""
    before = method.attached
    if before != wanted:
        (method.attach if wanted else method.detach)()
    try:
        yield
    finally:
        if before != wanted:
            (method.detach if wanted else method.attach)()
