"""T-Patcher: a neuron for a mistake, active at its own answer and nowhere else."""

import pytest
import torch

from scen_cli.baselines.catalogue import ready_method
from scen_cli.baselines.generate import answer
from scen_cli.baselines.method import attached
from tests.baselines.fits import FITS

COUNT = 4


@pytest.fixture(scope="module")
def patcher(given, edits):
    method = ready_method("t-patcher", given, FITS["t-patcher"])
    method.fit(edits[:COUNT])
    return method


def test_it_learns_its_edits(patcher, given, edits):
    with attached(patcher):
        answers = answer(given.base, given.template, [edit.prompt for edit in edits[:COUNT]], patcher)
    assert answers == [edit.target for edit in edits[:COUNT]]


def test_an_inactive_neuron_changes_nothing_to_the_bit(patcher, given):
    active = (patcher.patches.activation(patcher._unedited()) > 0).any(dim=1)
    assert active.float().mean() < 0.01
    prompts = [prompt for prompt, _answer in given.unedited[:20]]
    encoded = patcher.encode(prompts)
    with torch.no_grad():
        by_base = patcher.logits(encoded, encoded)[:, -1]
        with attached(patcher):
            patched = patcher.logits(encoded, encoded)[:, -1]
    still = torch.tensor([torch.equal(one, other) for one, other in zip(by_base, patched, strict=True)])
    assert still.sum() >= 18


def test_later_edits_leave_earlier_patches_alone(patcher, given, edits):
    method = ready_method("t-patcher", given, FITS["t-patcher"])
    method.fit(edits[:2])
    before = method.patches
    method.fit(edits[2:COUNT])
    assert len(method.patches.keys) > len(before.keys)
    for earlier, now in zip(before.tensors(), method.patches.tensors(), strict=True):
        assert torch.equal(now[: len(earlier)], earlier)


def test_there_is_one_neuron_a_sample_or_one_a_wrong_token_and_none_without_a_mistake(patcher, given, edits):
    assert len(patcher.patches.keys) > COUNT
    sample = ready_method("t-patcher", given, {**FITS["t-patcher"], "per": "sample", "steps": 1})
    sample.fit(edits[:COUNT])
    assert len(sample.patches.keys) == COUNT
    right = edits[0].model_copy(update={"target": answer(given.base, given.template, [edits[0].prompt])[0]})
    sample.fit([right])
    assert len(sample.patches.keys) == COUNT


def test_the_same_prompt_can_be_edited_again(patcher, given, edits):
    method = ready_method("t-patcher", given, FITS["t-patcher"])
    method.load({name: one.clone() for name, one in patcher.state().items()})
    method.fit([edits[0].model_copy(update={"target": edits[1].target})])
    with attached(method):
        assert answer(given.base, given.template, [edits[0].prompt], method) == [edits[1].target]
