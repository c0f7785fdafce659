"""Asking a base, or a method on it: every answer of a comparison is generated here, in one way for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from scen_cli.editing.patched_model import BATCH, MAX_NEW_TOKENS
from scen_cli.model.base import Base
from scen_cli.model.keys import padded
from scen_cli.model.template import Prompt, Template


class Answers(Protocol):
    """A method on a base, as far as it is asked here."""

    def prompt_ids(self, prompt: Prompt) -> list[int]: ...

    def generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Tensor: ...


def answer(
    base: Base, template: Template, prompts: Sequence[Prompt], method: Answers | None = None, **options: Any
) -> list[str]:
    """Greedy answers, or as `options` for `generate` say, by a method as it stands, or by the base alone. Prompts of
    like lengths are generated together."""
    rows = [(method.prompt_ids if method else template.prompt_ids)(prompt) for prompt in prompts]
    context = getattr(base.model.config, "max_position_embeddings", None) or 10**9
    wanted = int(options.pop("max_new_tokens", None) or MAX_NEW_TOKENS)
    usual = {"do_sample": False, "pad_token_id": template.end_id, "eos_token_id": list(template.end_ids)}
    generate: Callable[..., Tensor] = method.generate if method else _by_base(base)
    texts = [""] * len(rows)
    rooms = [min(wanted, context - len(tokens)) for tokens in rows]
    for batch in _batches([len(tokens) for tokens in rows], [room < wanted for room in rooms]):
        ids, mask = (one.to(base.device) for one in padded([rows[row] for row in batch], template.end_id))
        room = rooms[batch[0]]
        if room < 1:
            continue
        with torch.no_grad():
            out = generate(ids, mask, **{**usual, "max_new_tokens": room, **options})
        for row, tokens in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
            texts[row] = template.answer(tokens)
    return texts


def _by_base(base: Base) -> Callable[..., Tensor]:
    def generate(ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
        out: Tensor = base.model.generate(input_ids=ids, attention_mask=mask, **options)
        return out

    return generate


def _batches(lengths: Sequence[int], alone: Sequence[bool]) -> Iterator[list[int]]:
    """Rows in batches of like lengths; each of those whose context has little room left by itself."""
    yield from ([row] for row in range(len(lengths)) if alone[row])
    order = sorted((row for row in range(len(lengths)) if not alone[row]), key=lambda row: lengths[row])
    yield from (order[start : start + BATCH] for start in range(0, len(order), BATCH))
