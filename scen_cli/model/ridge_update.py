"""One weight change for many edits: the closed form of MEMIT and COMEBA-HK."""

from __future__ import annotations

import torch
from torch import Tensor


def ridge_update(c: Tensor, keys: Tensor, residual: Tensor) -> Tensor:
    """The change of W_down that maps each key k to W k + r and moves other keys least (regularised least squares).

    Args:
        c: Second moment of the keys that must stay, scaled by their weight, (h, h).
        keys: Keys of the edits as columns, K (h, n).
        residual: Wanted changes of the output as columns, R (d, n).

    Returns:
        R K^T (C + K K^T)^-1, (d, h), in float64.
    """
    keys, residual = keys.double(), residual.double()
    return torch.linalg.solve(c.double() + keys @ keys.T, keys @ residual.T).T
