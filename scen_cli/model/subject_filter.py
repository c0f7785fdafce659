"""A second look at a prompt that calls an edit: the edit's subject must occur in it.

Keys of two questions about different things can be alike; their words are not. This file needs torch alone,
and is copied as it is into exported checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCKED = -1.0  # the activation of a neuron whose edit's subject does not occur


class SubjectFilter:
    """Knows for each row of W_merge the token sequences of which one must occur in a prompt; a row without any is
    never blocked."""

    def __init__(self, forms: Sequence[Sequence[Sequence[int]]]) -> None:
        self._rows: dict[tuple[int, ...], list[int]] = {}
        for row, sequences in enumerate(forms):
            for sequence in sequences:
                self._rows.setdefault(tuple(sequence), []).append(row)
        lengths: dict[int, set[int]] = {}
        for sequence in self._rows:
            lengths.setdefault(sequence[0], set()).add(len(sequence))
        self._lengths = {first: sorted(found) for first, found in lengths.items()}
        self._looks = [bool(sequences) for sequences in forms]
        self._mask: Tensor | None = None  # of `_looks`; made late: a model may be built where tensors have no data

    def named(self, tokens: Sequence[int]) -> list[int]:
        """The rows whose subject occurs in a prompt of these tokens, some of them more than once."""
        found: list[int] = []
        for start, first in enumerate(tokens):
            for length in self._lengths.get(first, ()):
                found += self._rows.get(tuple(tokens[start : start + length]), ())
        return found

    def blocked(self, prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """Which rows (prompts, t) each prompt may not call."""
        if self._mask is None:
            self._mask = torch.tensor(self._looks)
        named = [self.named(tokens) for tokens in prompts]
        blocked = self._mask.repeat(len(prompts), 1)
        at = [prompt for prompt, rows in enumerate(named) for _ in rows]
        blocked[at, [row for rows in named for row in rows]] = False
        return blocked.to(device)
