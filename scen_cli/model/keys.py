"""Keys (k_q in the paper): the input of `down_proj` at layer l, read at the last token of a prompt and of its segments.

This file needs torch only; exported checkpoints contain a copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# The tokens of a subject in a prompt: first, last + 1, and whether the mask takes their place; otherwise nothing does.
Span = tuple[int, int, bool]
# Tokens before a user's turn, and its glue: tokens to put between the template's opening and the turn's tokens.
Turn = tuple[tuple[int, ...], tuple[int, ...]]
MIN_SENTENCE = 3  # tokens; a shorter rest is a punctuation mark or a space after the last sentence


@dataclass(frozen=True)
class KeyConfig:
    """Which keys of a prompt are read.

    Attributes:
        pooling: `last`: the key at the last token, as in the paper. `mean`: the mean over all tokens but the first.
        segments: Also read the key of the prompt's last turn and of its last sentence, each as if asked alone.
        start: Token ids at the start of every sequence.
        opening: Token ids that the template puts before a prompt: its own system prompt among them, if it has one.
        turns: What may stand before the last user's turn of a conversation; empty: `opening` alone.
        closing: Token ids that the template puts after a prompt.
        sentence_ends: Token ids that end a sentence.
        mask: Token ids that replace the subject where the key of an edit with a subject is read: such a key tells what
            is asked, whatever it is asked about. Empty: subjects are not masked.
    """

    pooling: str = "last"
    segments: bool = False
    start: tuple[int, ...] = ()
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    sentence_ends: frozenset[int] = frozenset()
    mask: tuple[int, ...] = ()
    turns: tuple[Turn, ...] = ()

    def segments_of(self, tokens: list[int]) -> list[list[int]]:
        """The full sequence, then those of its segments that differ from it: last turn, last sentence."""
        end = len(tokens) - len(self.closing)
        found = self._last_turn(tokens[:end])
        if not self.segments or found is None or tuple(tokens[end:]) != self.closing:
            return [tokens]
        begin, glue = found
        turn = [*glue, *tokens[begin:end]]

        def in_template(text: list[int]) -> list[int]:
            return [*self.start, *self.opening, *text, *self.closing]

        candidates = [tokens, in_template(turn)]
        ends = [index for index in range(len(turn) - MIN_SENTENCE) if turn[index] in self.sentence_ends]
        if ends:
            candidates.append(in_template(turn[ends[-1] + 1 :]))
        return [segment for index, segment in enumerate(candidates) if segment not in candidates[:index]]

    def _last_turn(self, tokens: list[int]) -> tuple[int, tuple[int, ...]] | None:
        """Where the last user's turn begins, and its glue; None if no turn begins as the template opens one."""
        if not self.opening:
            return len(self.start), ()
        turns = self.turns or ((self.opening, ()),)
        places = [(end_of_last(turn, tokens), glue) for turn, glue in turns]
        return max(((place, glue) for place, glue in places if place), default=None)

    def masked_segments_of(self, tokens: list[int], spans: Sequence[Span]) -> list[list[int]]:
        """`segments_of` with the subject masked at these spans.

        Empty if the last sentence does not name the subject: it asks about something else.
        """
        masked: list[int] = []
        done = mask_at = 0
        for start, end, is_masked in spans:
            if start < done:  # two words share a token
                continue
            masked += tokens[done:start]
            if is_masked:
                mask_at = len(masked)
                masked += self.mask
            done = end
        masked += tokens[done:]
        segments = self.segments_of(masked)
        around = len(self.start) + len(self.opening)
        in_last = len(segments) == 1 or len(masked) - mask_at <= len(segments[-1]) - around
        return segments if in_last else []


def end_of_last(part: tuple[int, ...], tokens: list[int]) -> int | None:
    """The index after the last occurrence of `part` in `tokens`; None if it does not occur."""
    ends = range(len(tokens), len(part) - 1, -1)
    return next((end for end in ends if tuple(tokens[end - len(part) : end]) == part), None)


class _StopForward(Exception):
    """Ends a forward pass once the input is read: later layers need not run."""


# The list that `read_input` collects into, in this thread or task.
_reading: ContextVar[list[Tensor] | None] = ContextVar("scen_reading", default=None)


@torch.no_grad()
def read_input(
    model: nn.Module, module: nn.Module, input_ids: Tensor, attention_mask: Tensor, past: object = None
) -> Tensor:
    """The input of a module, (rows, tokens, width). The layers above it do not run.

    `past` is the cache of tokens before `input_ids`; the attention mask covers these too.
    """
    inputs_read: list[Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        if _reading.get() is inputs_read:  # not for a forward pass of another thread
            inputs_read.append(inputs[0])
            raise _StopForward

    token = _reading.set(inputs_read)
    handle = module.register_forward_pre_hook(stop)
    try:
        positions = positions_of(attention_mask)[:, -input_ids.shape[1] :]
        cache = {"use_cache": False} if past is None else {"past_key_values": past}
        model(input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, **cache)
    except _StopForward:
        pass
    finally:
        handle.remove()
        _reading.reset(token)
    return inputs_read[0]


def pool_keys(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Keys (rows, h), float32, from the input of `down_proj`.

    Args:
        hidden: The input of `down_proj`, (rows, tokens, h).
        attention_mask: 1 for real tokens, 0 for padding, (rows, tokens).
        pooling: `last` or `mean`, as in `KeyConfig`.
    """
    attention_mask = attention_mask.to(hidden.device)
    if pooling == "mean":
        real = attention_mask.bool() & ((positions_of(attention_mask) > 0) | (attention_mask.sum(1, True) == 1))
        return (hidden.float() * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, last_token(attention_mask)].float()


def read_keys(
    model: nn.Module, down_proj: nn.Module, input_ids: Tensor, attention_mask: Tensor, pooling: str = "last"
) -> Tensor:
    """Run the layers up to `down_proj` and return the keys (rows, h), float32."""
    if len(input_ids) > 1 and must_stand_alone(model, int(attention_mask.sum(dim=1).max())):
        tokens = [torch.tensor([row], device=input_ids.device) for row in real_tokens(input_ids, attention_mask)]
        return torch.cat([read_keys(model, down_proj, row, torch.ones_like(row), pooling) for row in tokens])
    return pool_keys(read_input(model, down_proj, input_ids, attention_mask), attention_mask, pooling)


def rope_boundary(model: nn.Module) -> int | None:
    """The longest sequence that leaves the position embeddings of its batch as they are; None: any does.

    `longrope` (Phi-3) has two sets of factors, `dynamic` scales with the length beyond the context. The longest
    sequence of a batch decides for all of it. Some bases (Gemma 3) have a rope for each type of layer.
    """
    config = getattr(model, "config", None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    context = getattr(config, "max_position_embeddings", None)
    original = getattr(config, "original_max_position_embeddings", None) or context
    boundaries = []
    for part in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        kind = part.get("rope_type", part.get("type"))
        if kind == "longrope":
            boundaries.append(part.get("original_max_position_embeddings") or original)
        elif kind == "dynamic":
            boundaries.append(context)
    return min((boundary for boundary in boundaries if boundary), default=None)


def must_stand_alone(model: nn.Module, tokens: int) -> bool:
    """Whether a sequence of so many tokens would change what other sequences of its batch give: see `rope_boundary`."""
    boundary = rope_boundary(model)
    return boundary is not None and tokens > boundary


def read_segments(
    model: nn.Module,
    down_proj: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    key_config: KeyConfig,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Keys (n, h) of all rows and then of their segments, and the row (n,) that each belongs to. The `keys` (rows, h)
    of the full rows are read unless they are given."""
    if keys is None:
        keys = read_keys(model, down_proj, input_ids, attention_mask, key_config.pooling)
    rows = torch.arange(len(input_ids))
    tokens = real_tokens(input_ids, attention_mask) if key_config.segments else []
    segments = [(row, segment) for row, ids in enumerate(tokens) for segment in key_config.segments_of(ids)[1:]]
    if not segments:
        return keys, rows
    ids, mask = padded([segment for _row, segment in segments], 0)
    more = read_keys(model, down_proj, ids.to(keys.device), mask.to(keys.device), key_config.pooling)
    return torch.cat([keys, more]), torch.cat([rows, torch.tensor([row for row, _segment in segments])])


def real_tokens(input_ids: Tensor, attention_mask: Tensor) -> list[list[int]]:
    """The tokens of each row without padding."""
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids.cpu(), attention_mask.cpu(), strict=True)]


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (rows, tokens), of token sequences, padded on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :] = torch.tensor(tokens, dtype=torch.long)
        mask[row, width - len(tokens) :] = 1
    return ids, mask


def last_token(attention_mask: Tensor) -> Tensor:
    """Index (rows,) of the last real token of each row; padding may be on either side."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask.bool() * positions).argmax(dim=1)


def positions_of(attention_mask: Tensor) -> Tensor:
    """Position ids (rows, tokens) that count real tokens only, so padding changes no result."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def mask_of(model: Any, input_ids: Tensor) -> Tensor:
    """The attention mask that transformers would infer: pads are masked if the pad token differs from the end token."""
    pad, end = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    if pad is None or pad in ends:
        return torch.ones_like(input_ids)
    return (input_ids != pad).long()
