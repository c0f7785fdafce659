"""The one loop that generates answers: token rows in, generated tokens out, in batches. Also, sampled prompts.

A base that was tuned on a template has learned which prompts occur in it: generate after the template's opening.
(Magpie, Xu et al. 2024, samples instructions from chat models in the same way.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scen_cli.model.base import Base
from scen_cli.model.keys import must_stand_alone, padded
from scen_cli.model.template import Template

MAX_NEW_TOKENS = 50
BATCH = 64  # prompts generated together
# Of sampled prompts: the longest in tokens, how many in a batch, and samples per wanted prompt.
SAMPLE_TOKENS, SAMPLE_BATCH, TRIES = 64, 100, 3

Progress = Callable[[int, int], None]  # called with the number of items done so far, and of all that are known of

# Generates one batch: (indices of its rows, ids, attention mask, options of `generate`) -> ids with the answers.
GenerateBatch = Callable[[list[int], Tensor, Tensor, dict[str, Any]], Tensor]


def no_progress(_done: int, _total: int) -> None:
    """The progress callback that does nothing."""


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
    crosses = [must_stand_alone(base.model, len(row) + max_new_tokens) for row in rows]
    alone = [0 < left < max_new_tokens or crossing for left, crossing in zip(room, crosses, strict=True)]
    asked = [index for index, left in enumerate(room) if left > 0]
    for batch in answer_batches(asked, [len(row) for row in rows], alone, edits or [None] * len(rows), edits_per_batch):
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
    """Rows in batches of at most `BATCH`, sorted by edit and then by length. Some stand `alone`: rows whose context
    leaves less room than the others', and rows that would change the others' position embeddings."""
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


@torch.no_grad()
def sample_prompts(
    base: Base, template: Template, count: int, seed: int, minimum: int = 0, progress: Progress = no_progress
) -> list[str]:
    """Sample at most `count` different prompts at temperature 1. Global random state does not change.

    Args:
        base: The base.
        template: Sampling starts after its opening; a sample counts if it ends with its closing.
        count: The number of wanted prompts.
        seed: The same seed gives the same prompts.
        minimum: Sampling stops after a third of the tries if less than a quarter of this number has come.
        progress: Called with the number of prompts so far.

    Returns:
        The prompts; fewer than `count`, or none, if few samples end as the template does.
    """
    frame = template.frame()
    ids = torch.tensor([[*frame.start, *frame.opening]], device=base.device)
    if not ids.numel():
        return []
    ends = sorted({*template.end_ids, *(frame.closing[:1] if len(frame.closing) == 1 else ())})
    prompts: dict[str, None] = {}
    with torch.random.fork_rng(devices=[base.device] if base.device.type == "cuda" else []):
        torch.manual_seed(seed)
        size = min(SAMPLE_BATCH, count)
        batches = -(-count * TRIES // size)
        for batch in range(batches):
            if batch == batches // 3 and len(prompts) < minimum / 4:
                break
            out = base.model.generate(
                input_ids=ids.expand(size, -1),
                attention_mask=torch.ones_like(ids).expand(size, -1),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=SAMPLE_TOKENS,
                pad_token_id=ends[0],
                eos_token_id=ends,
            )
            for tokens in out[:, ids.shape[1] :].tolist():
                text = frame.extract_prompt(tokens, template.end_ids)
                prompt = base.tokenizer.decode(text, skip_special_tokens=True).strip()
                if prompt and "\ufffd" not in prompt:
                    prompts.setdefault(prompt)
            progress(len(prompts), count)
            if len(prompts) >= count:
                break
    return list(prompts)[:count]
