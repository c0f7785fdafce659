"""MEND: an edit made out of a gradient, by a network that saw the base alone."""

from dataclasses import replace

import pytest
import torch

from scen_cli.baselines.catalogue import ready_method
from scen_cli.baselines.generate import answer
from scen_cli.baselines.mend import Editor, MendSettings
from scen_cli.baselines.method import attached
from scen_cli.errors import UsageError
from tests.baselines.fits import FITS

OTHERS = 20


def right(method, given, pairs):
    """The share of pairs that are answered as they should be."""
    with attached(method):
        answers = answer(given.base, given.template, [prompt for prompt, _wanted in pairs], method)
    return sum(said == wanted for said, (_prompt, wanted) in zip(answers, pairs, strict=True)) / len(pairs)


@pytest.fixture(scope="module")
def others(given):
    return [pair for pair in given.unedited if pair[1]][:OTHERS]


def test_a_single_edit_works_and_leaves_the_rest_alone(given, edits, others):
    shares = []
    for edit in edits[:8]:
        method = ready_method("mend", given, FITS["mend"])
        method.fit([edit])
        learned = [(text, edit.target) for text in (edit.prompt, *edit.rephrases[:2])]
        shares.append((right(method, given, learned), right(method, given, others)))
    learned, left = torch.tensor(shares).mean(dim=0)
    assert learned >= 0.6
    assert left >= 0.9


def test_edits_one_after_another_undo_each_other_and_the_base(given, edits, others):
    method = ready_method("mend", given, FITS["mend"])
    for edit in edits[:40]:
        method.fit([edit])
    assert right(method, given, [(edit.prompt, edit.target) for edit in edits[:40]]) <= 0.3
    assert right(method, given, others) <= 0.5


def test_the_editor_begins_as_the_standardised_gradient():
    settings = MendSettings(rank=3, scale=0.1)
    u, delta = torch.randn(20, 6), torch.randn(20, 4)
    moves = Editor(u, delta, settings, seed=0)(u, delta)
    assert torch.allclose(moves.a, (u - u.mean(dim=0)) / u.std(dim=0), atol=1e-4)
    assert torch.allclose(moves.b.T, -0.1 * (delta - delta.mean(dim=0)) / delta.std(dim=0), atol=1e-4)
    assert not Editor(u, delta, settings, seed=0)(u, torch.zeros_like(delta)).b.any()


def test_the_editor_is_trained_once_for_all_methods_of_these_settings(given):
    first, second = (ready_method("mend", given, FITS["mend"]) for _ in range(2))
    assert first.editor is second.editor


def test_it_cannot_be_without_development_edits(given):
    with pytest.raises(UsageError, match="development"):
        ready_method("mend", replace(given, development=(), kept={}), FITS["mend"])
