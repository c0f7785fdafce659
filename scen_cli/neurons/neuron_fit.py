"""How a neuron is made.

Recipe `closed-form`: the neuron of an edit is its whitened key. Nothing is trained, no edit changes another. The guard
prompts show what all keys have in common. Their covariance whitens the keys, so the cosine of a neuron and a key acts
as a matched filter: it weighs the directions that distinguish prompts. A neuron that many guard prompts activate gets a
bias, which raises its own threshold.

Recipe `paper`: the neuron is trained on the losses of the paper (equations 5 to 8, section 3.3).

Recipe `joint` uses the same losses, with all other active edits and the guard prompts as negatives; in the paper,
neuron t has only earlier edits. If an older neuron is stronger on the new edit's key than the new neuron, the older one
is trained again with the new key among its negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scen_cli.model.routing import Whitening, prepare_keys
from scen_cli.recipe import Recipe

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


HARD_NEGATIVES = 4096  # training uses at most this many negatives: the nearest ones


@dataclass(frozen=True)
class NeuronFit:
    """A fitted neuron (h,), float32, and the loss before each Adam step (empty if nothing was trained)."""

    neuron: Tensor
    losses: list[float]


def neuron_loss(own: Tensor, negatives: Tensor, recipe: Recipe) -> Tensor:
    """The loss of edit t's indexing neuron: equations 5 to 8 of the paper.

        l_activate    = exp(-a_t)                            (5)
        l_disactivate = mean over i of exp(a_i + alpha)      (6)
        l_margin      = mean over i of exp(a_i - a_t + beta) (7)
        loss          = l_activate + m (l_disactivate + l_margin)  (8)

    Without negatives (the first edit) the loss is (5) alone. `recipe.disactivate` and `recipe.margin` switch off
    (6) and (7): the ablations of Table 3.

    Args:
        own: Activations of the neuron on its own keys, (k,). The paper has k = 1: this is a_t. Edits that share an
            expert (Table 4) share the neuron; (5) and (7) are then means over their keys.
        negatives: Activations of the same neuron on the other keys, (n,): the a_i.
        recipe: Supplies alpha, beta and m.

    Returns:
        The loss, a scalar.
    """
    loss = torch.exp(-own).mean()  # (5)
    if len(negatives) and recipe.disactivate:
        loss = loss + recipe.m * torch.exp(negatives + recipe.alpha).mean()  # (6)
    if len(negatives) and recipe.margin:
        loss = loss + recipe.m * torch.exp(negatives[:, None] - own + recipe.beta).mean()  # (7)
    return loss


def train_neuron(keys: Tensor, negatives: Tensor, recipe: Recipe, seed: int = 0) -> NeuronFit:
    """Train one indexing neuron with Adam on `neuron_loss`. All other neurons stay as they are.

    Training runs in float32 on the CPU, so the result does not depend on the base's device.

    Args:
        keys: The edit's key, (1, h), or the keys of all edits that share the neuron, (k, h).
        negatives: Keys on which the neuron must stay weak, (n, h). In the paper: the t-1 earlier keys.
        recipe: Supplies `neuron_lr`, `neuron_steps` and the settings of the loss.
        seed: Seed of the initial weights, U(-1/sqrt(h), 1/sqrt(h)): the default of `nn.Linear`.
    """
    keys, negatives = keys.float().cpu(), negatives.float().cpu()
    bound = keys.shape[1] ** -0.5
    generator = torch.Generator().manual_seed(seed)
    neuron = torch.empty_like(keys[0]).uniform_(-bound, bound, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([neuron], lr=recipe.neuron_lr)
    losses = []
    with torch.enable_grad():
        for _ in range(recipe.neuron_steps):
            # Equation 10: an activation is sigmoid(w . k).
            loss = neuron_loss(torch.sigmoid(keys @ neuron), torch.sigmoid(negatives @ neuron), recipe)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return NeuronFit(neuron.detach(), losses)


def hard_negatives(keys: Tensor, negatives: Tensor) -> Tensor:
    """The `HARD_NEGATIVES` rows of `negatives` (n, h) with the largest dot product with any of `keys` (k, h), in their
    order; all rows if there are no more. This bounds the cost of a training step."""
    if len(negatives) <= HARD_NEGATIVES:
        return negatives
    nearest = (negatives @ keys.T).amax(dim=1).topk(HARD_NEGATIVES).indices
    return negatives[nearest.sort().values]


def refit_colliding(
    neurons: Tensor, keys: Tensor, new_neuron: Tensor, new_key: Tensor, guard: Tensor, recipe: Recipe
) -> dict[int, Tensor]:
    """Train again each neuron that is at least as strong on the new edit's key as the new neuron.

    A refitted neuron may still be as strong. The index then rejects the new edit.

    Args:
        neurons: The active neurons, (t, h).
        keys: One key of each neuron's own edit, (t, h).
        new_neuron: The new edit's neuron, (h,).
        new_key: The new edit's key, (h,).
        guard: Keys of guard prompts, (g, h).
        recipe: The project's recipe.

    Returns:
        {row of `neurons`: refitted neuron (h,)}.
    """
    refitted: dict[int, Tensor] = {}
    for row in ((neurons @ new_key) >= new_neuron @ new_key).nonzero().flatten().tolist():
        negatives = torch.cat([keys[:row], keys[row + 1 :], guard])
        # Repeat the new key: together its copies weigh as much as all other negatives.
        negatives = torch.cat([negatives, new_key.expand(max(len(negatives), 1), -1)])
        # Start from new weights: where sigmoid(w . k) is near 1, the gradient is nearly 0.
        refitted[row] = train_neuron(keys[row : row + 1], negatives, recipe, seed=row).neuron
    return refitted
