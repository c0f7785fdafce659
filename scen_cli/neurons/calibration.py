"""Set the threshold theta for a wanted rate of false activations, and state the rate to expect.

The method is split conformal prediction. If k of n unedited prompts have an activation of at least theta, a new prompt
of the same kind exceeds theta with probability k / (n + 1) on average, whatever the distribution of activations. The
rate itself follows Beta(k, n + 1 - k) (Vovk 2012; Angelopoulos and Bates 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, exp, floor, inf, lgamma, log

from torch import Tensor

from scen_cli.errors import UsageError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class CalibratedThreshold:
    """A calibrated threshold.

    Attributes:
        theta: The threshold.
        k: How many of the calibration prompts have an activation of at least theta.
        n: How many calibration prompts there are.
        low: Lower end of the 95 % interval of the false activation rate on new prompts.
        high: Upper end of the same interval.
    """

    theta: float
    k: int
    n: int
    low: float
    high: float

    @property
    def expected(self) -> float:
        """The false activation rate to expect on new prompts."""
        return self.k / (self.n + 1)


def check_enough(prompts: int, false_activation: float) -> None:
    """Raise `UsageError` if this many calibration prompts are too few for this rate."""
    if floor(false_activation * (prompts + 1)) < 1:
        raise UsageError(
            f"{prompts} guard prompts are too few for a rate of {false_activation:g}",
            hint=f"calibration needs at least {round(1 / false_activation) - 1}: pass a file with `--guard`",
        )


def calibrate(
    activations: Tensor, false_activation: float, lowest: float = -inf, highest: float = inf
) -> CalibratedThreshold:
    """Find the threshold that new prompts exceed at a rate of at most `false_activation` on average.

    Args:
        activations: The largest activation of any neuron on each calibration prompt, (n,).
        false_activation: The wanted rate.
        lowest: Theta is at least this; the rate is then lower than wanted.
        highest: Theta is at most this; the rate is then higher than wanted, and the result says so.

    Raises:
        UsageError: There are too few prompts for this rate.
    """
    n = len(activations)
    check_enough(n, false_activation)
    k = floor(false_activation * (n + 1))
    theta = float(activations.topk(k).values[-1])
    if not lowest <= theta <= highest:
        theta = min(max(theta, lowest), highest)
        k = int((activations > theta).sum())
        return CalibratedThreshold(theta, k, n, *rate_interval(k, k + 1, n))
    return CalibratedThreshold(theta, k, n, *rate_interval(k, k, n))


def rate_interval(k_low: int, k_high: int, n: int) -> tuple[float, float]:
    """The 95 % interval of the rate: quantiles of Beta(k, n + 1 - k).

    If the n prompts did not set the threshold and k of them exceed it, pass k and k + 1 (Clopper and Pearson).
    """
    tail = (1 - CONFIDENCE) / 2
    return (_beta_quantile(tail, k_low, n) if k_low else 0.0), _beta_quantile(1 - tail, k_high, n)


def expected_to_fire(k: int, n: int, fresh: int) -> tuple[int, int]:
    """The smallest and the largest number of `fresh` new prompts to exceed theta, with probability of at least 95 %.

    The number follows the beta-binomial distribution with parameters k and n + 1 - k.
    """
    k = max(k, 1)
    total = comb(n + fresh, fresh)
    below, low, high = 0.0, 0, fresh
    for count in range(fresh + 1):
        low = count if below <= (1 - CONFIDENCE) / 2 else low
        below += comb(k + count - 1, count) * comb(n - k + fresh - count, fresh - count) / total
        if below >= 1 - (1 - CONFIDENCE) / 2:
            high = count
            break
    return low, high


def _beta_quantile(p: float, k: int, n: int) -> float:
    """Quantile of Beta(k, n + 1 - k) by bisection: P(Beta <= x) = P(Binomial(n, x) >= k)."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        at_least_k = 1 - sum(_binomial(i, n, middle) for i in range(k))
        low, high = (middle, high) if at_least_k < p else (low, middle)
    return (low + high) / 2


def _binomial(i: int, n: int, p: float) -> float:
    combinations = lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1)  # the logarithm: the number itself overflows
    return exp(combinations + i * log(p) + (n - i) * log(1 - p))
