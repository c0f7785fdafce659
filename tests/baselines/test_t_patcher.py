"""T-Patcher: one neuron per mistake, active only where its own answer is predicted."""

import pytest
import torch

from scen_cli.baselines.catalogue import prepared_method
from scen_cli.baselines.context import answer
from scen_cli.baselines.method import attached
from tests.baselines.fits import FITS

COUNT = 4


@pytest.fixture(scope="module")
def patcher(context, edits):
    method = prepared_method("t-patcher", context, FITS["t-patcher"])
    method.fit(edits[:COUNT])
    return method


def test_it_learns_its_edits(patcher, context, edits):
    with attached(patcher):
        answers = answer(context.base, context.template, [edit.prompt for edit in edits[:COUNT]], patcher)
    assert answers == [edit.target for edit in edits[:COUNT]]


def test_an_inactive_neuron_keeps_logits_to_the_bit(patcher, context):
    active = (patcher.patches.activation(patcher._unedited_queries()) > 0).any(dim=1)
    assert active.float().mean() < 0.01
    prompts = [prompt for prompt, _answer in context.unedited[:20]]
    encoded = patcher.encode(prompts)
    with torch.no_grad():
        by_base = patcher.logits(encoded, encoded)[:, -1]
        with attached(patcher):
            patched = patcher.logits(encoded, encoded)[:, -1]
    equal = [torch.equal(*rows) for rows in zip(by_base, patched, strict=True)]
    assert sum(equal) >= 18


def test_later_edits_keep_earlier_patches(patcher, context, edits):
    method = prepared_method("t-patcher", context, FITS["t-patcher"])
    method.fit(edits[:2])
    before = method.patches
    method.fit(edits[2:COUNT])
    assert len(method.patches.keys) > len(before.keys)
    for earlier, now in zip(before, method.patches, strict=True):
        assert torch.equal(now[: len(earlier)], earlier)


def test_one_neuron_per_edit_or_per_wrong_token_and_none_without_a_mistake(patcher, context, edits):
    assert len(patcher.patches.keys) > COUNT
    sample = prepared_method("t-patcher", context, {**FITS["t-patcher"], "per": "sample", "steps": 1})
    sample.fit(edits[:COUNT])
    assert len(sample.patches.keys) == COUNT
    right = edits[0].model_copy(update={"target": answer(context.base, context.template, [edits[0].prompt])[0]})
    sample.fit([right])
    assert len(sample.patches.keys) == COUNT


def test_the_same_prompt_can_be_edited_again(patcher, context, edits):
    method = prepared_method("t-patcher", context, FITS["t-patcher"])
    method.load({name: tensor.clone() for name, tensor in patcher.state().items()})
    method.fit([edits[0].model_copy(update={"target": edits[1].target})])
    with attached(method):
        assert answer(context.base, context.template, [edits[0].prompt], method) == [edits[1].target]
