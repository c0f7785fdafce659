"""The threshold for a wanted rate of false activations, and what may be expected of it.

Split conformal prediction: if k of n unedited prompts are at or above theta, a fresh prompt of the
same kind passes it with probability k / (n + 1) on average, whatever the activations' law; the
rate itself is distributed as Beta(k, n + 1 - k) (Vovk 2012, Angelopoulos and Bates 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, exp, floor, inf, lgamma, log

from torch import Tensor

from scen_cli.errors import UsageError

INTERVAL = 0.95


@dataclass(frozen=True)
class Calibrated:
    """A threshold, how many of the n guard prompts it was set by are at or above it (k), and the 95 %
    interval of the rate of false activations on fresh prompts."""

    theta: float
    k: int
    n: int
    low: float
    high: float

    @property
    def expected(self) -> float:
        return self.k / (self.n + 1)


def check_enough(prompts: int, false_activation: float) -> None:
    """Raise `UsageError` if so many calibration prompts are too few to tell such a rate."""
    if floor(false_activation * (prompts + 1)) < 1:
        raise UsageError(
            f"{prompts} guard prompts cannot tell a rate of {false_activation:g}",
            hint=f"at least {round(1 / false_activation) - 1} are needed to set theta by: `--guard` takes a file",
        )


def calibrate(strongest: Tensor, false_activation: float, lowest: float = -inf, highest: float = inf) -> Calibrated:
    """The threshold that fresh prompts pass at a rate of at most `false_activation` on average.

    `strongest` (n,): the largest activation of any neuron on each calibration prompt. Never below `lowest`,
    where fewer fire, nor above `highest`, where more do: what to expect says so. Raises `UsageError` if
    there are too few prompts to tell such a rate.
    """
    n = len(strongest)
    check_enough(n, false_activation)
    k = floor(false_activation * (n + 1))
    theta = float(strongest.topk(k).values[-1])
    if not lowest <= theta <= highest:
        theta = min(max(theta, lowest), highest)
        k = int((strongest > theta).sum())
        return Calibrated(theta, k, n, *rate_interval(k, k + 1, n))
    return Calibrated(theta, k, n, *rate_interval(k, k, n))


def rate_interval(k_low: int, k_high: int, n: int) -> tuple[float, float]:
    """Where the rate lies with probability 95 %: quantiles of Beta(k, n + 1 - k). Of a threshold that
    was not set by these prompts, and that k of them pass, from that of k to that of k + 1
    (Clopper and Pearson)."""
    tail = (1 - INTERVAL) / 2
    return (_beta_quantile(tail, k_low, n) if k_low else 0.0), _beta_quantile(1 - tail, k_high, n)


def expected_to_fire(k: int, n: int, fresh: int) -> tuple[int, int]:
    """How many of `fresh` further prompts fire, at least and at most, with probability 95 % or more: the
    beta-binomial law of k, n + 1 - k."""
    k = max(k, 1)
    total = comb(n + fresh, fresh)
    below, low, high = 0.0, 0, fresh
    for count in range(fresh + 1):
        low = count if below <= (1 - INTERVAL) / 2 else low
        below += comb(k + count - 1, count) * comb(n - k + fresh - count, fresh - count) / total
        if below >= 1 - (1 - INTERVAL) / 2:
            high = count
            break
    return low, high


def _beta_quantile(p: float, k: int, n: int) -> float:
    """By halving: Beta(k, n + 1 - k) is below x as often as a binomial(n, x) is at least k."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        fewer = sum(_binomial(i, n, middle) for i in range(k))
        low, high = (middle, high) if 1 - fewer < p else (low, middle)
    return (low + high) / 2


def _binomial(i: int, n: int, p: float) -> float:
    ways = lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1)
    return exp(ways + i * log(p) + (n - i) * log(1 - p))
