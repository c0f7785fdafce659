"""MEND: edits from gradients, by a network that was trained on the base only."""

from dataclasses import replace

import pytest
import torch

from scen_cli.baselines.catalogue import prepared_method
from scen_cli.baselines.context import answer
from scen_cli.baselines.mend import GradientNetwork, MendSettings
from scen_cli.baselines.method import attached
from scen_cli.errors import UsageError
from tests.baselines.fits import FITS

OTHERS = 20


def right(method, context, pairs):
    """The share of (prompt, wanted answer) pairs that are answered rightly."""
    with attached(method):
        answers = answer(context.base, context.template, [prompt for prompt, _wanted in pairs], method)
    return sum(text == wanted for text, (_prompt, wanted) in zip(answers, pairs, strict=True)) / len(pairs)


@pytest.fixture(scope="module")
def others(context):
    return [pair for pair in context.unedited if pair[1]][:OTHERS]


def test_a_single_edit_works_and_is_local(context, edits, others):
    shares = []
    for edit in edits[:8]:
        method = prepared_method("mend", context, FITS["mend"])
        method.fit([edit])
        learned = [(text, edit.target) for text in (edit.prompt, *edit.rephrases[:2])]
        shares.append((right(method, context, learned), right(method, context, others)))
    learned, left = torch.tensor(shares).mean(dim=0)
    assert learned >= 0.6
    assert left >= 0.9


def test_many_consecutive_edits_break_each_other_and_the_base(context, edits, others):
    method = prepared_method("mend", context, FITS["mend"])
    for edit in edits[:40]:
        method.fit([edit])
    assert right(method, context, [(edit.prompt, edit.target) for edit in edits[:40]]) <= 0.3
    assert right(method, context, others) <= 0.5


def test_the_network_starts_as_the_standardised_gradient():
    settings = MendSettings(rank=3, scale=0.1)
    u, delta = torch.randn(20, 6), torch.randn(20, 4)
    moves = GradientNetwork(u, delta, settings, seed=0)(u, delta)
    assert torch.allclose(moves.a, (u - u.mean(dim=0)) / u.std(dim=0), atol=1e-4)
    assert torch.allclose(moves.b.T, -0.1 * (delta - delta.mean(dim=0)) / delta.std(dim=0), atol=1e-4)
    assert not GradientNetwork(u, delta, settings, seed=0)(u, torch.zeros_like(delta)).b.any()


def test_the_network_is_trained_once_per_settings(context):
    first, second = (prepared_method("mend", context, FITS["mend"]) for _ in range(2))
    assert first.network is second.network


def test_development_edits_are_required(context):
    with pytest.raises(UsageError, match="development"):
        prepared_method("mend", replace(context, development=(), cache={}), FITS["mend"])
