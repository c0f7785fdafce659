"""`GrowingMatrix`: rows that are appended one by one."""

from __future__ import annotations

import torch
from torch import Tensor


class GrowingMatrix:
    """Float32 rows on the CPU. `append` takes constant time on average: the capacity doubles when it is used up."""

    def __init__(self, width: int) -> None:
        self._buffer = torch.empty(16, width)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, row: Tensor) -> None:
        if self._count == len(self._buffer):
            self._buffer = torch.cat([self._buffer, torch.empty_like(self._buffer)])
        self._buffer[self._count] = row
        self._count += 1

    def all(self) -> Tensor:
        """The rows (n, width): a view, valid until the next `append`."""
        return self._buffer[: self._count]
