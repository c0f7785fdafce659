"""A matrix that grows by rows without being copied at each."""

from __future__ import annotations

import torch
from torch import Tensor


class GrowingMatrix:
    """Float32 rows of one width, on the CPU. Room is doubled when it runs out."""

    def __init__(self, width: int) -> None:
        self._room = torch.empty(16, width)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: Tensor) -> None:
        if self._count == len(self._room):
            self._room = torch.cat([self._room, torch.empty_like(self._room)])
        self._room[self._count] = row
        self._count += 1

    def keep(self, wanted: Tensor) -> None:
        """Drop the rows that `wanted` (n,) of booleans does not name."""
        kept = self.all()[wanted]
        self._room[: len(kept)] = kept.clone()
        self._count = len(kept)

    def all(self) -> Tensor:
        """The rows (n, width): a view, good until the next change."""
        return self._room[: self._count]
