"""SERAC's scope classifier: whether a query is in the scope of an edit.

The authors' embedding classifier, p = exp(-|f(edit) - f(query)|^2) (Mitchell et al. 2022). Here f is a
linear map of the base's own keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scen_cli.baselines.training_examples import take_step

EPSILON = 1e-6  # least argument of a logarithm


def scope_probability(queries: Tensor, edits: Tensor) -> Tensor:
    """p (rows, n) for embedded queries (rows, width) and edits (n, width)."""
    return (-_squared_distances(queries, edits)).exp()


def train_projection(
    edits: Tensor, queries: Tensor, scope: Tensor, width: int, steps: int, lr: float, seed: int
) -> Tensor:
    """Train f with Adam. Pairs in scope and pairs out of scope have the same total weight.

    Args:
        edits: Keys (n, h) of edits.
        queries: Keys (m, h) of queries.
        scope: (m,) the index of the edit whose scope holds the query, or -1.
        width: The width of the embedding.
        steps: Adam steps, each on all pairs.
        lr: Adam's learning rate.
        seed: Seeds the initial f.

    Returns:
        f (width, h), float32.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(width, edits.shape[1], generator=generator).to(edits) / width**0.5
    median = _squared_distances(queries @ start.T, edits @ start.T).median() + EPSILON
    projection = (start / median.sqrt()).requires_grad_()  # the median pair starts at distance 1
    in_scope = scope[:, None] == torch.arange(len(edits), device=scope.device)
    optimizer = torch.optim.Adam([projection], lr=lr)
    for _ in range(steps):
        distances = _squared_distances(queries @ projection.T, edits @ projection.T)
        out_of_scope = -torch.expm1(-distances[~in_scope])
        take_step(optimizer, distances[in_scope].mean() - out_of_scope.clamp(min=EPSILON).log().mean())
    return projection.detach()


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(len(a), len(b))."""
    return ((a**2).sum(dim=1)[:, None] + (b**2).sum(dim=1) - 2 * a @ b.T).clamp(min=0)
