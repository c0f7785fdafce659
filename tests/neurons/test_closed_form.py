"""The matched filter against the formulas it comes from, and what bounds it."""

from __future__ import annotations

import pytest
import torch

from scen_cli.neurons.closed_form import HIGHEST_BIAS, OWN, SHRINKAGE, bias_of, neuron_of, whitening_of

unit = torch.nn.functional.normalize


@pytest.fixture
def guard() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(60, 24) @ torch.diag(torch.linspace(5, 0.1, 24)) + 3


@pytest.mark.parametrize("prompts", [60, 9])  # more and fewer than the keys are wide
def test_whitening_is_the_inverse_root_of_the_guards_covariance(guard, prompts):
    guard = guard[:prompts].double()
    centred = unit(guard - guard.mean(dim=0), dim=1)
    values, axes = torch.linalg.eigh(centred.T @ centred / prompts)
    root = axes @ torch.diag((values.clamp(min=0) + SHRINKAGE * values.max()) ** -0.5) @ axes.T
    keys = torch.randn(5, 24, dtype=torch.double)
    by_hand = unit(unit(keys - guard.mean(dim=0), dim=1) @ root, dim=1)
    assert torch.allclose(whitening_of(guard.float())(keys.float()).double(), by_hand, atol=1e-4)


def test_what_all_prompts_share_no_longer_makes_them_alike(guard):
    whitening = whitening_of(guard)
    one, other = guard[0] + 0.01, guard[1] - 0.01
    assert unit(one, dim=0) @ unit(other, dim=0) > 0.3
    assert abs(float(whitening(one) @ whitening(other))) < 0.2


def test_an_edits_own_key_gives_its_neuron_one_and_no_other_key_more(guard):
    whitening = whitening_of(guard)
    keys = torch.randn(8, 24)
    neurons = torch.stack([neuron_of(key[None], torch.empty(0, 24), whitening) for key in keys])
    activations = whitening(keys) @ neurons.T
    assert torch.allclose(activations.diag(), torch.ones(8), atol=1e-5)
    assert (activations.argmax(dim=1) == torch.arange(8)).all()


def test_learned_rephrases_draw_the_neuron_but_never_off_its_own_prompt(guard):
    whitening = whitening_of(guard)
    own, near = torch.randn(24), torch.randn(24)
    plain = neuron_of(own[None], torch.empty(0, 24), whitening)
    for learned in (own + 0.3 * near, near, -own):  # close by, elsewhere, opposite
        drawn = neuron_of(own[None], learned[None], whitening)
        assert float(drawn @ whitening(own)) >= OWN
        if learned is not near:
            continue
        assert float(drawn @ whitening(near)) > float(plain @ whitening(near)) + 0.05


def test_edits_that_share_an_expert_share_a_neuron_between_them():
    keys = torch.eye(2)
    assert torch.allclose(neuron_of(keys, torch.empty(0, 2), None), torch.tensor([0.5, 0.5]).sqrt())


def test_the_bias_is_half_the_crowds_activation_and_bounded():
    assert bias_of(torch.empty(0)) == 0.0
    assert bias_of(torch.tensor([-0.5, -0.2])) == 0.0
    crowd = torch.cat([torch.full((10,), 0.2), torch.zeros(90)])
    assert bias_of(crowd) == pytest.approx(0.1)
    assert bias_of(torch.ones(20)) == HIGHEST_BIAS
