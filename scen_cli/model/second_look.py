"""A second look at a prompt that calls an edit: the edit's subject must occur in it.

Keys of two questions about different things can be alike; their words are not. This file needs torch alone,
and is copied as it is into exported checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCKED = -1.0  # the activation of a neuron whose edit's subject does not occur


class SecondLook:
    """Knows for each row of W_merge the token sequences of which one must occur in a prompt; a row without any is
    never blocked."""

    def __init__(self, forms: Sequence[Sequence[Sequence[int]]]) -> None:
        self._rows: dict[tuple[int, ...], list[int]] = {}
        for row, sequences in enumerate(forms):
            for sequence in sequences:
                self._rows.setdefault(tuple(sequence), []).append(row)
        self._lengths = sorted({len(sequence) for sequence in self._rows})
        self._free = [not sequences for sequences in forms]  # a list: a model may be built where tensors have no data

    def allowed(self, tokens: Sequence[int]) -> Tensor:
        """Which rows (t,) a prompt of these tokens may call."""
        rows = torch.tensor(self._free)
        for length in self._lengths:
            for start in range(len(tokens) - length + 1):
                rows[self._rows.get(tuple(tokens[start : start + length]), [])] = True
        return rows

    def __call__(self, activations: Tensor, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Activations (rows, t) with those of blocked edits set to `BLOCKED`."""
        if not self._rows:
            return activations
        allowed = torch.stack([self.allowed(tokens) for tokens in prompts]).to(activations.device)
        return activations.masked_fill(~allowed, BLOCKED)
