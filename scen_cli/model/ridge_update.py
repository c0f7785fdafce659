"""One matrix for many edits: the closed form of MEMIT and COMEBA-HK."""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_update(c: Tensor, keys: Tensor, residual: Tensor) -> Tensor:
    """Delta (d, h) = R K^T (C + K K^T)^-1, in float64: of all changes to W_down that bring each key k of K (h, n) to
    Wk + r, in the sense of least squares, the one that moves the keys behind C (h, h) least. `residual` R is (d, n)."""
    keys, residual = keys.double(), residual.double()
    return torch.linalg.solve(c.double() + keys @ keys.T, keys @ residual.T).T
