"""Closed-form neurons: whitening, neurons and biases against their formulas."""

from __future__ import annotations

import pytest
import torch

from scen_cli.neurons.neuron_fit import MAX_BIAS, MIN_OWN_ACTIVATION, SHRINKAGE, bias_of, neuron_of, whitening_of

unit = torch.nn.functional.normalize


@pytest.fixture
def guard() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(60, 24) @ torch.diag(torch.linspace(5, 0.1, 24)) + 3


@pytest.mark.parametrize("prompts", [60, 9])  # more prompts than dimensions, and fewer
def test_whitening_is_the_inverse_square_root_of_the_guard_covariance(guard, prompts):
    guard = guard[:prompts].double()
    centred = unit(guard - guard.mean(dim=0), dim=1)
    values, axes = torch.linalg.eigh(centred.T @ centred / prompts)
    root = axes @ torch.diag((values.clamp(min=0) + SHRINKAGE * values.max()) ** -0.5) @ axes.T
    keys = torch.randn(5, 24, dtype=torch.double)
    expected = unit(unit(keys - guard.mean(dim=0), dim=1) @ root, dim=1)
    assert torch.allclose(whitening_of(guard.float())(keys.float()).double(), expected, atol=1e-4)


def test_whitening_removes_what_all_prompts_share(guard):
    whitening = whitening_of(guard)
    first, second = guard[0] + 0.01, guard[1] - 0.01
    assert unit(first, dim=0) @ unit(second, dim=0) > 0.3
    assert abs(float(whitening(first) @ whitening(second))) < 0.2


def test_a_neuron_is_strongest_on_its_own_key_with_activation_one(guard):
    whitening = whitening_of(guard)
    keys = torch.randn(8, 24)
    neurons = torch.stack([neuron_of(key[None], torch.empty(0, 24), whitening) for key in keys])
    activations = whitening(keys) @ neurons.T
    assert torch.allclose(activations.diag(), torch.ones(8), atol=1e-5)
    assert (activations.argmax(dim=1) == torch.arange(8)).all()


def test_rephrase_keys_pull_the_neuron_but_its_own_prompt_keeps_0_9(guard):
    whitening = whitening_of(guard)
    own, near = torch.randn(24), torch.randn(24)
    plain = neuron_of(own[None], torch.empty(0, 24), whitening)
    for rephrase in (own + 0.3 * near, near, -own):  # near, far, opposite
        pulled = neuron_of(own[None], rephrase[None], whitening)
        assert float(pulled @ whitening(own)) >= MIN_OWN_ACTIVATION
        if rephrase is not near:
            continue
        assert float(pulled @ whitening(near)) > float(plain @ whitening(near)) + 0.05


def test_edits_that_share_an_expert_share_the_mean_of_their_keys():
    keys = torch.eye(2)
    assert torch.allclose(neuron_of(keys, torch.empty(0, 2), None), torch.tensor([0.5, 0.5]).sqrt())


def test_bias_is_half_the_mean_of_the_ten_largest_guard_activations_and_bounded():
    assert bias_of(torch.empty(0)) == 0.0
    assert bias_of(torch.tensor([-0.5, -0.2])) == 0.0
    on_guard = torch.cat([torch.full((10,), 0.2), torch.zeros(90)])
    assert bias_of(on_guard) == pytest.approx(0.1)
    assert bias_of(torch.ones(20)) == MAX_BIAS
