"""Recipe `closed-form`: the neuron of an edit is its whitened key. Nothing is trained, no edit changes another.

The guard prompts show what all keys have in common. Their covariance whitens the keys, so the cosine of a neuron and a
key acts as a matched filter: it weighs the directions that distinguish prompts. A neuron that many guard prompts
activate gets a bias, which raises its own threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scen_cli.model.routing import Whitening, prepare_keys

SHRINKAGE = 0.003  # added to each variance, as a share of the largest (benchmarks/LOG.md)
BIAS_PROMPTS = 10  # the bias follows from the guard prompts with the largest activations: this many
BIAS_SHARE = 0.5  # of their mean activation
MAX_BIAS = 0.2
MIN_OWN_ACTIVATION = 0.9  # of an edit's own prompt, however far rephrases pull the neuron


def whitening_of(guard: Tensor) -> Whitening:
    """Compute the whitening from guard keys (n, h): an eigendecomposition of their covariance, in float64.

    The whitening has at most n axes, because n keys span no more directions.
    """
    guard = guard.double().cpu()
    mean = guard.mean(dim=0)
    centred = nn.functional.normalize(guard - mean, dim=1) / max(len(guard), 1) ** 0.5
    _left, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    variances = singular**2
    floor = SHRINKAGE * variances[0]
    kept = variances > 1e-9 * variances[0]
    scales = (floor / (variances[kept] + floor)).sqrt() - 1
    return Whitening(mean.float(), axes[kept].float().contiguous(), scales.float())


def neuron_of(keys: Tensor, rephrase_keys: Tensor, whitening: Whitening | None) -> Tensor:
    """Compute a closed-form neuron.

    Args:
        keys: The edit's key, (1, h), or the keys of all edits that share the expert, (n, h).
        rephrase_keys: Keys of the rephrases that the edit is trained on, (m, h). They pull the neuron towards
            themselves, as much as the edit's own key does, but the neuron keeps a cosine of at least
            `MIN_OWN_ACTIVATION` with the neuron that the own keys alone would give.
        whitening: The guard's whitening; None (recipe `key`): keys are only normalised.

    Returns:
        The neuron, (h,), of unit length: the mean of the whitened keys.
    """
    unit = nn.functional.normalize
    own = unit(prepare_keys(keys, cosine=True, whitening=whitening).mean(dim=0), dim=0)
    if not len(rephrase_keys):
        return own
    share = len(rephrase_keys) / (len(keys) + len(rephrase_keys))
    rephrases = prepare_keys(rephrase_keys, cosine=True, whitening=whitening).mean(dim=0)
    neuron = unit((1 - share) * own + share * rephrases, dim=0)
    while float(neuron @ own) < MIN_OWN_ACTIVATION:
        share /= 2
        neuron = unit((1 - share) * own + share * rephrases, dim=0)
    return neuron


def bias_of(on_guard: Tensor) -> float:
    """The bias of a neuron from its activations on the guard prompts, (g,)."""
    if not len(on_guard):
        return 0.0
    strongest = on_guard.topk(min(BIAS_PROMPTS, len(on_guard))).values.mean()
    return min(MAX_BIAS, BIAS_SHARE * max(0.0, float(strongest)))
