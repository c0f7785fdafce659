"""Keys of many prompts: in batches of similar length, and with the template's opening computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from scen_cli.model.base import Base
from scen_cli.model.ffn import EditedLayer
from scen_cli.model.generation import Progress, no_progress
from scen_cli.model.keys import KeyConfig, must_stand_alone, padded, pool_keys, read_input

BATCH = 64  # prompts in one forward pass
MIN_OPENING = 8  # tokens; a shorter opening is not worth a cache


def read_segment_keys(
    base: Base,
    edited: EditedLayer,
    sequences: Sequence[Sequence[int]],
    key_config: KeyConfig,
    progress: Progress = no_progress,
) -> tuple[Tensor, Tensor]:
    """Read the keys of token sequences, and then of their segments.

    Returns:
        Keys (n, h) on the CPU, and the index of the sequence that each key belongs to, (n,).
    """
    owners, parts = list(range(len(sequences))), [list(sequence) for sequence in sequences]
    for owner, sequence in enumerate(sequences):
        segments = key_config.segments_of(list(sequence))[1:]
        owners += [owner] * len(segments)
        parts += segments
    alone = [must_stand_alone(base.model, len(part)) for part in parts]
    opening = _opening(parts) if key_config.pooling == "last" and not any(alone) else []
    past = _past(base, opening)
    keys = torch.empty(len(parts), edited.ffn_width)
    done = 0
    for batch in _batches([len(part) for part in parts], alone):
        # Padding on the right: between the opening and the rest it would push the opening out of a sliding window.
        flipped = padded([parts[index][len(opening) :][::-1] for index in batch], 0)
        ids, mask = (tensor.flip(1).to(base.device) for tensor in flipped)
        repeated = copy.deepcopy(past)
        if repeated is not None:
            repeated.batch_repeat_interleave(len(batch))
            mask = torch.cat([mask.new_ones(len(batch), len(opening)), mask], dim=1)
        hidden = read_input(base.model, edited.down_proj, ids, mask, repeated)
        keys[batch] = pool_keys(hidden, mask[:, len(opening) :], key_config.pooling).cpu()
        done += len(batch)
        progress(done, len(parts))
    return keys, torch.tensor(owners)


def _batches(lengths: Sequence[int], alone: Sequence[bool]) -> Iterator[list[int]]:
    """Indices of sequences of similar length. Some stand `alone`."""
    together = sorted((i for i in range(len(lengths)) if not alone[i]), key=lambda i: lengths[i])
    for start in range(0, len(together), BATCH):
        yield together[start : start + BATCH]
    yield from ([index] for index, is_alone in enumerate(alone) if is_alone)


def _opening(sequences: Sequence[Sequence[int]]) -> list[int]:
    """What many sequences begin with, as the default system prompt of a chat template; nothing if it is short."""
    if len(sequences) <= BATCH:
        return []
    columns = zip(*(sequence[:-1] for sequence in sequences), strict=False)
    opening = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return opening if len(opening) >= MIN_OPENING else []


@torch.no_grad()
def _past(base: Base, opening: Sequence[int]) -> Any:
    """transformers' cache of the opening, for one row; None without an opening."""
    if not opening:
        return None
    return base.model(input_ids=torch.tensor([list(opening)], device=base.device), use_cache=True).past_key_values
