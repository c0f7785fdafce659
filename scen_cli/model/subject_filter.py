"""The subject filter: an edit with a subject is routed to only if the prompt names that subject.

Keys of two questions about different subjects can be similar, but their words differ. This file needs torch only;
exported checkpoints contain a copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCKED = -1.0  # replaces the activation of a blocked neuron


class SubjectFilter:
    """Blocks the rows of W_merge whose subject does not occur in a prompt.

    Args:
        forms: For each row, the token sequences that name its subject; one of them must occur in the prompt. A row
            without sequences is never blocked.
    """

    def __init__(self, forms: Sequence[Sequence[Sequence[int]]]) -> None:
        self._rows: dict[tuple[int, ...], list[int]] = {}  # by token sequence
        for row, sequences in enumerate(forms):
            for sequence in sequences:
                self._rows.setdefault(tuple(sequence), []).append(row)
        # The lengths of the sequences that begin with a token: a search compares no other slices of the prompt.
        self._lengths: dict[int, set[int]] = {}
        for sequence in self._rows:
            self._lengths.setdefault(sequence[0], set()).add(len(sequence))
        self._has_subject = [bool(sequences) for sequences in forms]
        # `_has_subject` as a tensor, made on first use: a model may be built on the meta device.
        self._mask: Tensor | None = None

    @property
    def all_have_subjects(self) -> bool:
        """Whether every row has a subject."""
        return all(self._has_subject)

    def named(self, tokens: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
        """The token sequences of subjects that occur in a prompt of these tokens, with the rows that each names."""
        found: dict[tuple[int, ...], list[int]] = {}
        for start, first in enumerate(tokens):
            for length in self._lengths.get(first, ()):
                sequence = tuple(tokens[start : start + length])
                if sequence in self._rows:
                    found[sequence] = self._rows[sequence]
        return found

    def with_subject(self, device: torch.device) -> Tensor:
        """Mask (t,) of the rows that have a subject."""
        if self._mask is None:
            self._mask = torch.tensor(self._has_subject)
        return self._mask.to(device)

    def blocked(self, prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        """Mask (prompts, t) of the rows that each prompt must not route to."""
        blocked = self.with_subject(torch.device("cpu")).repeat(len(prompts), 1)
        for prompt, tokens in enumerate(prompts):
            blocked[prompt, [row for rows in self.named(tokens).values() for row in rows]] = False
        return blocked.to(device)
