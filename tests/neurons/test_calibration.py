"""Calibrated thresholds: the promised rates hold on new prompts."""

from __future__ import annotations

import math
import random

import pytest
import torch

from scen_cli.errors import UsageError
from scen_cli.neurons.calibration import calibrate, expected_to_fire, rate_interval


def test_rate_on_new_prompts_is_the_wanted_rate_for_any_distribution():
    """Averaged over 400 samples of 300 prompts, from a distribution with heavy tails."""
    torch.manual_seed(0)
    rates = []
    for _ in range(400):
        found = calibrate(torch.randn(300).exp(), 0.05)
        rates.append(1 - torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(math.log(found.theta))).item())
    assert found.expected == 15 / 301
    assert sum(rates) / len(rates) == pytest.approx(15 / 301, rel=0.06)
    assert sum(found.low <= rate <= found.high for rate in rates) / len(rates) == pytest.approx(0.95, abs=0.03)


def test_rate_interval_matches_simulated_beta_quantiles():
    """Beta(k, n + 1 - k) is the distribution of the k-th smallest of n uniform numbers."""
    rng = random.Random(0)
    k, n = 4, 200
    drawn = sorted(sorted(rng.random() for _ in range(n))[k - 1] for _ in range(4000))
    low, high = rate_interval(k, k, n)
    assert low == pytest.approx(drawn[100], rel=0.12)
    assert high == pytest.approx(drawn[3900], rel=0.12)
    assert rate_interval(500, 500, 10_000)[1] < 0.056  # no overflow


def test_expected_to_fire_covers_95_percent_of_simulations():
    torch.manual_seed(0)
    low, high = expected_to_fire(10, 1000, 500)
    inside = 0
    for _ in range(500):
        activations = torch.rand(1500)
        theta = calibrate(activations[:1000], 0.01).theta
        inside += low <= int((activations[1000:] > theta).sum()) <= high
    assert 0.94 <= inside / 500 <= 1.0
    assert (low, high) != (0, 500)


def test_theta_stays_within_bounds_and_the_rate_is_adjusted():
    activations = torch.linspace(0, 1, 200)
    free = calibrate(activations, 0.01)
    assert free.k == 2
    assert int((activations > free.theta).sum()) == 1
    higher, lower = calibrate(activations, 0.1, lowest=0.95), calibrate(activations, 0.01, highest=0.9)
    assert (higher.theta, lower.theta) == (0.95, 0.9)
    assert higher.expected < 0.1
    assert lower.expected > 0.05
    assert lower.low < 0.1 < lower.high


def test_too_few_prompts_for_a_rate_is_an_error():
    with pytest.raises(UsageError, match="98 guard prompts are too few for a rate of 0.01") as raised:
        calibrate(torch.rand(98), 0.01)
    assert "at least 99" in raised.value.hint
    assert calibrate(torch.rand(99), 0.01).k == 1
