"""SERAC's scope classifier: whether a query is within what an edit is about.

The authors' embedding classifier, p = exp(-|f(edit) - f(query)|^2), whose f is a linear map of the base's own states.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-6  # of what stands under a logarithm


def within_scope(queries: Tensor, edits: Tensor) -> Tensor:
    """p (rows, n) for embedded queries (rows, width) and edits (n, width)."""
    return (-_apart(queries, edits)).exp()


def trained_projection(
    edits: Tensor, queries: Tensor, owner: Tensor, width: int, steps: int, lr: float, seed: int
) -> Tensor:
    """f (width, h), float32, by the states of edits (n, h) and of queries (m, h), each of which is in the scope of one
    edit alone, its `owner` (m,), or of none (-1). Pairs within and pairs without weigh the same."""
    random = torch.Generator().manual_seed(seed)
    start = torch.randn(width, edits.shape[1], generator=random).to(edits) / width**0.5
    usual = _apart(queries @ start.T, edits @ start.T).median() + FLOOR
    projection = (start / usual.sqrt()).requires_grad_()  # the usual pair begins at a distance of 1
    within = owner[:, None] == torch.arange(len(edits), device=owner.device)
    optimizer = torch.optim.Adam([projection], lr=lr)
    for _ in range(steps):
        apart = _apart(queries @ projection.T, edits @ projection.T)
        without = -torch.expm1(-apart[~within])
        loss = apart[within].mean() - without.clamp(min=FLOOR).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return projection.detach()


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (len(a), len(b))."""
    return ((a**2).sum(dim=1)[:, None] + (b**2).sum(dim=1) - 2 * a @ b.T).clamp(min=0)
