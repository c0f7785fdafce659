"""Recipe `closed-form`: an edit's whitened key is its neuron. Nothing is trained, no edit touches another's.

Unedited prompts (the guard) say what keys have in common. Their covariance whitens all keys, so that
the cosine of a neuron and a key is a matched filter: it weighs what tells prompts apart. A
neuron whose edit lies among many prompts gets a bias, its threshold of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scen_cli.model.routing import Whitening, prepare

SHRINKAGE = 0.003  # of the largest variance: what is added to all of them (benchmarks/LOG.md)
CROWD = 10  # a neuron's crowd: the guard prompts it is strongest on
BIAS = 0.5  # of the crowd's mean activation
HIGHEST_BIAS = 0.2
OWN = 0.9  # what an edit's own prompt gives its neuron at least


def whitening_of(guard: Tensor) -> Whitening:
    """The whitening of guard keys (n, h), by the eigenvectors of their covariance in float64.

    There are at most n axes: beside them keys vary in no way that the guard knows of.
    """
    guard = guard.double().cpu()
    mean = guard.mean(dim=0)
    centred = nn.functional.normalize(guard - mean, dim=1) / max(len(guard), 1) ** 0.5
    _left, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    variances = singular**2
    floor = SHRINKAGE * variances[0]
    known = variances > 1e-9 * variances[0]
    scales = (floor / (variances[known] + floor)).sqrt() - 1
    return Whitening(mean.float(), axes[known].float().contiguous(), scales.float())


def neuron_of(keys: Tensor, learned: Tensor, whitening: Whitening | None) -> Tensor:
    """The neuron (h,) of an edit's key (1, h), or of keys (n, h) that share an expert: their mean, whitened
    (without a whitening only brought to unit length), at unit length.

    Keys of `learned` rephrases (m, h) draw it to themselves as much as the edit's own key does, but no further
    than a cosine of `OWN` from where it would be.
    """
    unit = nn.functional.normalize
    own = unit(prepare(keys, cosine=True, whitening=whitening).mean(dim=0), dim=0)
    if not len(learned):
        return own
    share = len(learned) / (len(keys) + len(learned))
    rest = prepare(learned, cosine=True, whitening=whitening).mean(dim=0)
    neuron = unit((1 - share) * own + share * rest, dim=0)
    while float(neuron @ own) < OWN:
        share /= 2
        neuron = unit((1 - share) * own + share * rest, dim=0)
    return neuron


def bias_of(on_guard: Tensor) -> float:
    """The bias of a neuron whose activations on guard prompts are `on_guard` (n,)."""
    if not len(on_guard):
        return 0.0
    crowd = on_guard.topk(min(CROWD, len(on_guard))).values.mean()
    return min(HIGHEST_BIAS, BIAS * max(0.0, float(crowd)))
