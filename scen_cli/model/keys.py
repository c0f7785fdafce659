"""Keys: where in a prompt they are read, and the pass that reads them.

This file needs torch alone, and is copied as it is into exported checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SENTENCE = 3  # tokens that a sentence has at least: less is a mark or a space behind one


@dataclass(frozen=True)
class KeyConfig:
    """Where the key of a prompt is read.

    `pooling`: at the `last` token (the paper), or the `mean` over all tokens but the first. With `segments`,
    the prompt's last turn and its last sentence are read too, each as if it had been asked alone: they
    are found by the token ids that `start` every sequence, that the template puts before a prompt
    (`opening`) and after it (`closing`), and that end a sentence.
    """

    pooling: str = "last"
    segments: bool = False
    start: tuple[int, ...] = ()
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    sentence_ends: frozenset[int] = frozenset()

    def segments_of(self, tokens: list[int]) -> list[list[int]]:
        """The sequence itself, and the segments of it that differ from it."""
        end = len(tokens) - len(self.closing)
        at = _end_of_last(tokens, self.opening) if self.opening else len(self.start)
        if not self.segments or at is None or tuple(tokens[end:]) != self.closing:
            return [tokens]
        asked = tokens[at:end]

        def alone(text: list[int]) -> list[int]:
            return [*self.start, *self.opening, *text, *self.closing]

        found = [tokens, alone(asked)]
        ends = [place for place in range(len(asked) - SENTENCE) if asked[place] in self.sentence_ends]
        if ends:
            found.append(alone(asked[ends[-1] + 1 :]))
        return [segment for place, segment in enumerate(found) if segment not in found[:place]]


def _end_of_last(tokens: list[int], opening: tuple[int, ...]) -> int | None:
    """Where what follows the last `opening` begins."""
    for end in range(len(tokens), len(opening) - 1, -1):
        if tuple(tokens[end - len(opening) : end]) == opening:
            return end
    return None


class _StopForward(Exception):
    """Ends a forward pass once the key has been read: later layers need not run."""


@torch.no_grad()
def read_keys(
    model: nn.Module, down_proj: nn.Module, input_ids: Tensor, attention_mask: Tensor, pooling: str = "last"
) -> Tensor:
    """Keys (rows, h), float32: the input of `down_proj` at each row's last real token, or the mean over its
    tokens (`KeyConfig`): see `pooled` for what is read there."""
    return pooled(read_input(model, down_proj, input_ids, attention_mask), attention_mask, pooling)


@torch.no_grad()
def read_input(model: nn.Module, module: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The input of a module, (rows, tokens, width). Runs the layers up to it and no further."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, inputs: tuple[Tensor]) -> None:
        if _reading.get() is seen:  # not a forward of another thread that passes by meanwhile
            seen.append(inputs[0])
            raise _StopForward

    token = _reading.set(seen)
    handle = module.register_forward_pre_hook(stop)
    try:
        model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions_of(attention_mask),
            use_cache=False,
        )
    except _StopForward:
        pass
    finally:
        handle.remove()
        _reading.reset(token)
    return seen[0]


def pooled(hidden: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Keys (rows, h), float32, of the input of `down_proj`, (rows, tokens, h): at each row's last real token, or the
    mean over its real tokens but the first."""
    attention_mask = attention_mask.to(hidden.device)
    if pooling == "mean":
        real = attention_mask.bool() & ((positions_of(attention_mask) > 0) | (attention_mask.sum(1, True) == 1))
        return (hidden.float() * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, last_token(attention_mask)].float()


def read_segments(
    model: nn.Module, down_proj: nn.Module, input_ids: Tensor, attention_mask: Tensor, key_config: KeyConfig
) -> tuple[Tensor, Tensor]:
    """Keys (n, h) of all rows and of their segments, and the row (n,) each belongs to. The rows come first."""
    keys = read_keys(model, down_proj, input_ids, attention_mask, key_config.pooling)
    return with_segments(keys, model, down_proj, input_ids, attention_mask, key_config)


def with_segments(
    keys: Tensor,
    model: nn.Module,
    down_proj: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    key_config: KeyConfig,
) -> tuple[Tensor, Tensor]:
    """`route_segments`, where the `keys` of the whole rows are known."""
    rows = torch.arange(len(input_ids))
    if not key_config.segments:
        return keys, rows
    tokens = real_tokens(input_ids, attention_mask)
    segments = [(row, segment) for row, ids in enumerate(tokens) for segment in key_config.segments_of(ids)[1:]]
    if not segments:
        return keys, rows
    ids, mask = padded([segment for _row, segment in segments], 0)
    more = read_keys(model, down_proj, ids.to(keys.device), mask.to(keys.device), key_config.pooling)
    return torch.cat([keys, more]), torch.cat([rows, torch.tensor([row for row, _part in segments])])


def real_tokens(input_ids: Tensor, attention_mask: Tensor) -> list[list[int]]:
    """Each row's tokens without its padding."""
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids.cpu(), attention_mask.cpu(), strict=True)]


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (rows, tokens) of token sequences, padded on the left."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :] = torch.tensor(tokens, dtype=torch.long)
        mask[row, width - len(tokens) :] = 1
    return ids, mask


# Where this thread's or task's `read_keys` collects, while it runs.
_reading: ContextVar[list[Tensor] | None] = ContextVar("scen_reading", default=None)


def last_token(attention_mask: Tensor) -> Tensor:
    """Index (rows,) of each row's last real token, whatever side the padding is on."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask.bool() * positions).argmax(dim=1)


def positions_of(attention_mask: Tensor) -> Tensor:
    """Position ids (rows, tokens) that count real tokens only, so that padding changes nothing."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
