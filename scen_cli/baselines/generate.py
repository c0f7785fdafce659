"""Answers of a base, or of a method on it: every answer of a comparison is generated here, in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from scen_cli.model.base import Base
from scen_cli.model.generation import generate_answers
from scen_cli.model.template import Prompt, Template


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
