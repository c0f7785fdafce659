"""Each stage alone: what is trained, what stays unchanged, and how often the base runs."""

from __future__ import annotations

import math

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.errors import UsageError
from scen_cli.experts.fit import ExpertTask, fit_experts
from scen_cli.experts.prefix_cache import record_prefix, replay_prefix
from scen_cli.neurons.neuron_fit import neuron_loss, neuron_of, train_neuron
from scen_cli.recipe import Recipe, make_recipe
from tests.conftest import edit_all, revert


def test_layers_below_the_edited_one_run_once_for_all_training_steps(make_editor):
    """Layers 0 and 1 run for the prefix and for the key; layers 2 and 3 also run at every step."""
    editor = make_editor("key", expert_steps=10)
    layers, calls = editor.edited.layers, {}
    handles = [
        layer.self_attn.register_forward_hook(lambda *_args, n=n: calls.update({n: calls.get(n, 0) + 1}))
        for n, layer in enumerate(layers)
    ]
    edit_all(editor, demo_edits()[:1])
    for handle in handles:
        handle.remove()
    assert calls == {0: 2, 1: 2, 2: 2 + 10 + 1, 3: 10 + 1}  # the steps, and the last check


def test_replay_prefix_changes_no_logit_and_ends_with_the_block(make_editor):
    editor = make_editor()
    ids = torch.tensor([editor.tokenize_edit(demo_edits()[0]).input_ids])
    prefix = record_prefix(editor.model, editor.edited, ids)
    logits = editor.model(input_ids=ids, use_cache=False).logits
    other = torch.tensor([editor.tokenize_edit(demo_edits()[1]).input_ids])
    with replay_prefix(editor.edited, prefix):
        assert torch.equal(editor.model(input_ids=ids, use_cache=False).logits, logits)
    with pytest.raises(RuntimeError, match="inside"), replay_prefix(editor.edited, prefix):
        raise RuntimeError("inside")
    assert not torch.equal(editor.model(input_ids=other, use_cache=False).logits[0, -1], logits[0, -1])
    assert all("forward" not in vars(layer) for layer in editor.edited.layers)


def test_an_expert_starts_from_the_base_and_reports_wrong_tokens(make_editor):
    editor = make_editor()
    sample = editor.tokenize_edit(demo_edits()[0])

    def fit(**rates):
        return fit_experts(editor.model, editor.edited, [ExpertTask([sample])], Recipe(**rates))[0]

    small = fit(expert_lr=1e-6, expert_steps=1)
    assert (small.expert - editor.edited.base_weight()).abs().max() <= 1.1e-6
    assert 0 in small.wrong_tokens[0]
    learned = fit(expert_lr=1e-2, expert_steps=10)
    assert learned.wrong_tokens == [[]]
    assert learned.losses[0] == small.losses[0]
    assert learned.losses[-1] < 0.05
    assert learned.expert.dtype == torch.float32


class TestNeurons:
    def test_loss_equals_equations_5_to_8(self):
        recipe = Recipe(alpha=0.7, beta=0.3, m=2.0)
        own, earlier = torch.tensor([0.6]), torch.tensor([0.2, 0.4])
        expected = math.exp(-0.6) + 2 * (
            (math.exp(0.9) + math.exp(1.1)) / 2 + (math.exp(0.2 - 0.6 + 0.3) + math.exp(0.4 - 0.6 + 0.3)) / 2
        )
        assert neuron_loss(own, earlier, recipe).item() == pytest.approx(expected, rel=1e-6)
        assert neuron_loss(own, torch.empty(0), recipe).item() == pytest.approx(math.exp(-0.6))

    def test_a_neuron_is_strong_on_its_own_key_and_weak_on_others(self):
        torch.manual_seed(0)
        keys = torch.randn(6, 64)
        fit = train_neuron(keys[5:], keys[:5], Recipe(neuron_lr=0.05, neuron_steps=100), seed=3)
        activations = torch.sigmoid(keys @ fit.neuron)
        assert activations[5] > 0.9
        assert activations[:5].max() < 0.2
        assert len(fit.losses) == 100
        assert fit.losses[-1] < fit.losses[0]

    def test_the_same_seed_gives_the_same_neuron(self):
        key, earlier = torch.ones(8), torch.eye(8)[:2]
        first, again = (train_neuron(key[None], earlier, Recipe(), seed=1).neuron for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, train_neuron(key[None], earlier, Recipe(), seed=2).neuron)

    def test_the_key_recipe_uses_the_normalised_key(self):
        neuron = neuron_of(torch.tensor([[3.0, 4.0]]), torch.empty(0, 2), None)
        assert torch.allclose(neuron, torch.tensor([0.6, 0.8]))


def test_the_paper_recipe_has_the_papers_values():
    paper = make_recipe("paper", {})
    assert (paper.expert_lr, paper.expert_steps) == (1e-4, 10)
    assert (paper.neuron_lr, paper.neuron_steps, paper.theta) == (1e-4, 20, 0.65)
    assert (paper.alpha, paper.beta, paper.m) == (0.7, 0.3, 1.0)


@pytest.mark.parametrize("changes", [{"expert_lr": "fast"}, {"expert_steps": "0"}, {"index": "key"}, {"name": "x"}])
def test_invalid_settings_are_rejected(changes):
    with pytest.raises(UsageError):
        make_recipe("paper", changes)


def test_reverted_edits_are_not_negatives(make_editor):
    """The neuron of edit 3 after a revert of edit 1 equals one that was trained without edit 1."""
    with_revert, without = make_editor("paper"), make_editor("paper")
    first, second, third = demo_edits()[:3]
    edit_all(with_revert, [first, second])
    revert(with_revert.project, 1)
    edit_all(with_revert, [third])
    edit_all(without, [second, second.model_copy(update={"prompt": "unused?"})])
    revert(without.project, 2)
    edit_all(without, [third])
    assert (with_revert.project.w_merge().neurons[-1] == without.project.w_merge().neurons[-1]).all()
