"""The one loop that generates answers: token rows in, generated tokens out, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from scen_cli.model.base import Base
from scen_cli.model.keys import padded
from scen_cli.model.template import Template

MAX_NEW_TOKENS = 50
BATCH = 64  # prompts generated together

# Generates one batch: (indices of its rows, ids, attention mask, options of `generate`) -> ids with the answers.
GenerateBatch = Callable[[list[int], Tensor, Tensor, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Answers:
    """Answers to a list of prompts, in their order.

    Attributes:
        texts: The answers as text.
        edits: The edit whose expert gave each answer; None for the base, or for a method without routing.
        tokens: The generated token ids of each answer, up to the end token.
    """

    texts: list[str]
    edits: list[int | None]
    tokens: list[list[int]]


def generate_answers(
    base: Base,
    template: Template,
    rows: Sequence[Sequence[int]],
    generate: GenerateBatch,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    edits: Sequence[int | None] | None = None,
    edits_per_batch: int = BATCH,
    **options: Any,
) -> list[list[int]]:
    """Generate a continuation of each token row, greedily unless `options` say otherwise.

    Args:
        base: The base, for its device and context length.
        template: Knows the end tokens.
        rows: Token ids of prompts in the template.
        generate: Called once for each batch.
        max_new_tokens: The longest answer; shorter where the context leaves less room.
        edits: The edit that answers each row, if known: rows of the same edit share batches.
        edits_per_batch: How many different edits a batch may have.
        **options: Further options of `generate`.

    Returns:
        For each row the generated tokens, up to the end token; none where the context has no room.
    """
    room = [room_for_answer(base.model, len(row), max_new_tokens) for row in rows]
    pad_id = pad_token_id(base, template)
    defaults = {"do_sample": False, "pad_token_id": pad_id, "eos_token_id": list(template.end_ids)}
    generated: list[list[int]] = [[]] * len(rows)
    short = [0 < left < max_new_tokens for left in room]
    asked = [index for index, left in enumerate(room) if left > 0]
    for batch in answer_batches(asked, [len(row) for row in rows], short, edits or [None] * len(rows), edits_per_batch):
        ids, mask = (tensor.to(base.device) for tensor in padded([rows[index] for index in batch], pad_id))
        out = generate(batch, ids, mask, {**defaults, "max_new_tokens": room[batch[0]], **options})
        for index, tokens in zip(batch, out[:, ids.shape[1] :].tolist(), strict=True):
            generated[index] = template.until_end(tokens)
    return generated


def answer_batches(
    indices: Sequence[int],
    lengths: Sequence[int],
    alone: Sequence[bool],
    edits: Sequence[int | None],
    edits_per_batch: int,
) -> Iterator[list[int]]:
    """Rows in batches of at most `BATCH`, sorted by edit and then by length. Rows whose context leaves less room
    than the others' stand `alone`."""
    yield from ([index] for index in indices if alone[index])
    batch: list[int] = []
    in_batch: set[int] = set()
    for index in sorted((i for i in indices if not alone[i]), key=lambda i: (edits[i] or 0, lengths[i])):
        edit = edits[index]
        added = set() if edit is None else {edit}
        if batch and (len(batch) == BATCH or len(in_batch | added) > edits_per_batch):
            yield batch
            batch, in_batch = [], set()
        batch.append(index)
        in_batch |= added
    if batch:
        yield batch


def context_length(model: PreTrainedModel) -> int | None:
    """The longest sequence that the base takes, in tokens, if its config says."""
    return getattr(model.config, "max_position_embeddings", None)


def room_for_answer(model: PreTrainedModel, prompt_tokens: int, wanted: int) -> int:
    """How many of the `wanted` tokens fit behind a prompt; not positive where none does."""
    context = context_length(model)
    return wanted if context is None else min(wanted, context - prompt_tokens)


def pad_token_id(base: Base, template: Template) -> int:
    """The tokenizer's pad token if the base has a row for it, else the end token. Pads are always masked."""
    pad = base.tokenizer.pad_token_id
    rows = base.model.get_input_embeddings().weight.shape[0]
    return int(pad) if pad is not None and pad < rows else template.end_id
