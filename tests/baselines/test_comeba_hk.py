"""COMEBA-HK: its closed form, what it shares with MEMIT, what it keeps, and when its hooks count."""

import pytest
import torch

from scen_cli.baselines.catalogue import ready_method
from scen_cli.baselines.comeba_hk import SURE, Spread
from scen_cli.baselines.generate import answer
from scen_cli.baselines.method import attached
from scen_cli.model.ridge_update import written
from tests.baselines.fits import FITS

SETTINGS = {**FITS["comeba-hk"], "batch": 30}


def test_the_closed_form_is_the_least_squares_solution():
    """Of all Delta, the one with the least |Delta L|^2 + |Delta K - R|^2, where C = L L^T: by float64 `lstsq`."""
    random = torch.Generator().manual_seed(0)
    root, keys = (torch.randn(40, n, generator=random, dtype=torch.float64) for n in (60, 12))
    residual = torch.randn(9, 12, generator=random, dtype=torch.float64)
    unknowns = torch.cat([root, keys], dim=1).T
    wanted = torch.cat([torch.zeros(9, 60, dtype=torch.float64), residual], dim=1).T
    oracle = torch.linalg.lstsq(unknowns, wanted).solution.T
    assert torch.allclose(written(root @ root.T, keys, residual), oracle, atol=1e-10)


def test_with_one_layer_and_hooks_that_always_count_it_is_memit(given, edits):
    shared = {**FITS["memit"], "batch": None}
    memit, comeba = ready_method("memit", given, shared), ready_method("comeba-hk", given, {**shared, "alpha": -1e9})
    for method in (memit, comeba):
        method.fit(edits[:20])
    [name] = memit.weights
    moved = memit.weights[name] - memit.own_weights()[name]
    assert torch.allclose(comeba.deltas[0], moved, atol=1e-4 * moved.abs().max())
    prompts = [edit.prompt for edit in edits[:20]] + list(given.prompts[:40])
    answers = []
    for method in (memit, comeba):
        with attached(method):
            answers.append(answer(given.base, given.template, prompts, method))
    assert answers[0] == answers[1]
    assert answers[0][:20] != answer(given.base, given.template, prompts[:20])


def test_what_it_keeps_does_not_grow(given, edits):
    """300 edits in ten batches: what is kept has the size that it had after the first. The keys behind C add up."""
    method = ready_method("comeba-hk", given, {**SETTINGS, "value_steps": 1})
    before = method.c[0].clone()
    method.fit(edits[:30])
    size, shapes = method.cost(), {name: one.shape for name, one in method.state().items()}
    for start in range(30, 300, 30):
        method.fit(edits[start : start + 30])
    assert method.cost() == size
    assert {name: one.shape for name, one in method.state().items()} == shapes
    assert float((method.c[0] - before).trace()) > 0


@pytest.mark.parametrize("tokens", [4, 7, 8, 30])
def test_the_highest_z_score_there_can_be(tokens):
    """(n - 1) / sqrt(n): 2.2 cannot be reached by fewer than 7 tokens."""
    moves = torch.zeros(1, tokens)
    moves[0, -1] = 5.0
    highest = float(Spread.of(moves, torch.ones(1, tokens)).scores(moves).max())
    assert highest == pytest.approx((tokens - 1) / tokens**0.5, rel=1e-5)
    assert (highest >= 2.2) == (tokens >= 7)


def test_pads_do_not_count_and_a_prompt_without_outliers_has_none():
    moves = torch.tensor([[9.0, 9.0, 1.0, 2.0, 6.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    alone = Spread.of(moves[:1, 2:], mask[:1, 2:])
    padded = Spread.of(moves, mask)
    assert torch.equal(padded.mean[:1], alone.mean)
    assert torch.equal(padded.deviation[:1], alone.deviation)
    assert bool((padded.scores(moves)[1] == -torch.inf).all())


def test_alpha_is_the_smallest_of_the_highest_scores_there_were(given, edits):
    method = ready_method("comeba-hk", given, SETTINGS)
    alphas = [method.alphas[0]]
    for start in (0, 15, 30):
        some = edits[start : start + 15]
        method.fit(some)
        with attached(method):
            highest = method._measure(*method.encode([edit.prompt for edit in some])).highest[0]
        assert method.alphas[0] == pytest.approx(min(alphas[-1], float(highest.min()) - SURE))
        alphas.append(method.alphas[0])
    assert alphas[-1] < alphas[0]


def test_where_a_hook_does_not_count_the_base_answers_to_the_bit(given, edits):
    method = ready_method("comeba-hk", given, SETTINGS)
    method.fit(edits[:10])
    method.alphas = [1e9]
    ids, mask = method.encode([edit.prompt for edit in edits[:10]])
    with torch.no_grad():
        base = method.logits((ids, mask), (ids, mask))
        with attached(method):
            assert torch.equal(method.logits((ids, mask), (ids, mask)), base)
