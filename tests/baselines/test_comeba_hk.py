"""COMEBA-HK: its closed form, what it shares with MEMIT, the size of its state, and when its hooks count."""

import pytest
import torch

from scen_cli.baselines.catalogue import prepared_method
from scen_cli.baselines.comeba_hk import ROUNDING, Spread
from scen_cli.baselines.context import answer
from scen_cli.baselines.method import attached
from scen_cli.model.ffn import ridge_update
from tests.baselines.fits import FITS

SETTINGS = {**FITS["comeba-hk"], "batch": 30}


def test_the_closed_form_is_the_least_squares_solution():
    """Delta minimises |Delta L|^2 + |Delta K - R|^2, where C = L L^T. The oracle is `lstsq` in float64."""
    random = torch.Generator().manual_seed(0)
    root, keys = (torch.randn(40, n, generator=random, dtype=torch.float64) for n in (60, 12))
    residual = torch.randn(9, 12, generator=random, dtype=torch.float64)
    unknowns = torch.cat([root, keys], dim=1).T
    wanted = torch.cat([torch.zeros(9, 60, dtype=torch.float64), residual], dim=1).T
    oracle = torch.linalg.lstsq(unknowns, wanted).solution.T
    assert torch.allclose(ridge_update(root @ root.T, keys, residual), oracle, atol=1e-10)


def test_with_one_layer_and_hooks_that_always_count_comeba_equals_memit(context, edits):
    shared = {**FITS["memit"], "batch": None}
    memit, comeba = (
        prepared_method("memit", context, shared),
        prepared_method("comeba-hk", context, {**shared, "alpha": -1e9}),
    )
    for method in (memit, comeba):
        method.fit(edits[:20])
    [name] = memit.weights
    moved = memit.weights[name] - memit.base_weights()[name]
    assert torch.allclose(comeba.deltas[0], moved, atol=1e-4 * moved.abs().max())
    prompts = [edit.prompt for edit in edits[:20]] + list(context.prompts[:40])
    answers = []
    for method in (memit, comeba):
        with attached(method):
            answers.append(answer(context.base, context.template, prompts, method))
    assert answers[0] == answers[1]
    assert answers[0][:20] != answer(context.base, context.template, prompts[:20])


def test_stored_tensors_do_not_grow(context, edits):
    """After ten batches (300 edits) the state has the same size as after the first. C sums the keys of all batches."""
    method = prepared_method("comeba-hk", context, {**SETTINGS, "value_steps": 1})
    before = method.c[0].clone()
    method.fit(edits[:30])
    size, shapes = method.cost(), {name: tensor.shape for name, tensor in method.state().items()}
    for start in range(30, 300, 30):
        method.fit(edits[start : start + 30])
    assert method.cost() == size
    assert {name: tensor.shape for name, tensor in method.state().items()} == shapes
    assert float((method.c[0] - before).trace()) > 0


@pytest.mark.parametrize("tokens", [4, 7, 8, 30])
def test_highest_possible_z_score(tokens):
    """It is (n - 1) / sqrt(n): a prompt needs at least 7 tokens to reach 2.2."""
    distances = torch.zeros(1, tokens)
    distances[0, -1] = 5.0
    highest = float(Spread.of(distances, torch.ones(1, tokens)).scores(distances).max())
    assert highest == pytest.approx((tokens - 1) / tokens**0.5, rel=1e-5)
    assert (highest >= 2.2) == (tokens >= 7)


def test_pads_do_not_count_and_a_uniform_prompt_has_no_outliers():
    distances = torch.tensor([[9.0, 9.0, 1.0, 2.0, 6.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    alone = Spread.of(distances[:1, 2:], mask[:1, 2:])
    padded = Spread.of(distances, mask)
    assert torch.equal(padded.mean[:1], alone.mean)
    assert torch.equal(padded.deviation[:1], alone.deviation)
    assert bool((padded.scores(distances)[1] == -torch.inf).all())


def test_alpha_is_the_smallest_of_the_prompts_highest_scores(context, edits):
    method = prepared_method("comeba-hk", context, SETTINGS)
    alphas = [method.alphas[0]]
    for start in (0, 15, 30):
        batch = edits[start : start + 15]
        method.fit(batch)
        with attached(method):
            highest = method._read_prompts(*method.encode([edit.prompt for edit in batch])).highest[0]
        assert method.alphas[0] == pytest.approx(min(alphas[-1], float(highest.min()) - ROUNDING))
        alphas.append(method.alphas[0])
    assert alphas[-1] < alphas[0]


def test_where_no_hook_counts_logits_are_the_bases_to_the_bit(context, edits):
    method = prepared_method("comeba-hk", context, SETTINGS)
    method.fit(edits[:10])
    method.alphas = [1e9]
    ids, mask = method.encode([edit.prompt for edit in edits[:10]])
    with torch.no_grad():
        base = method.logits((ids, mask), (ids, mask))
        with attached(method):
            assert torch.equal(method.logits((ids, mask), (ids, mask)), base)
