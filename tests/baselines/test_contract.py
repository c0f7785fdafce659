"""What every method must do, whatever it is: one set of tests for all of them."""

import pytest
import torch
from safetensors.torch import load, save

from scen_cli.baselines.catalogue import METHODS, make_method, ready_method
from scen_cli.baselines.generate import answer
from scen_cli.baselines.method import attached
from scen_cli.baselines.training_examples import Examples
from tests.baselines.fits import FITS

COUNT = 6
OTHERS = ["Where was Karl Mameski born?", "Vuroville lies on which river?", "What does Bramenova Brothers make?"]


@pytest.fixture(scope="module", params=list(METHODS))
def fitted(request, given, edits):
    """A method with six edits, in two batches, and prompts: edits, a rephrase of each, others."""
    weights = {name: one.clone() for name, one in given.base.model.state_dict().items()}
    method = ready_method(request.param, given, FITS[request.param])
    fit_in_two(method, edits)
    yield method
    method.detach()
    now = given.base.model.state_dict()
    assert all(torch.equal(now[name], one) for name, one in weights.items())


@pytest.fixture(scope="module")
def prompts(edits):
    return [edit.prompt for edit in edits[:COUNT]] + [edit.rephrases[0] for edit in edits[:COUNT]] + OTHERS


def fit_in_two(method, edits):
    method.fit(edits[: COUNT // 2])
    method.fit(edits[COUNT // 2 : COUNT])


def logits_of(method, given, texts, side="left"):
    """Logits at the last token of prompts, each followed by the first token of an answer, in one batch."""
    rows = [given.template.prompt_ids(text) if isinstance(text, str) else text for text in texts]

    def padded(rows):
        width = max(map(len, rows))
        pads = [[7] * (width - len(row)) for row in rows]
        both = [pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)]
        ones = [[0] * len(pad) for pad in pads]
        mask = [o + [1] * len(r) if side == "left" else [1] * len(r) + o for o, r in zip(ones, rows, strict=True)]
        return torch.tensor(both), torch.tensor(mask)

    longer = [[*row, 300, 301] for row in rows]
    ids, mask = padded(longer)
    with torch.no_grad():
        found = method.logits(padded(rows), (ids, mask))
    return torch.stack([one[keep.bool()][-3:] for one, keep in zip(found, mask, strict=True)])


def test_detached_it_leaves_the_base_as_it_was_to_the_bit(fitted, given, prompts):
    ids, mask = fitted.encode(prompts)
    with torch.no_grad():
        before = given.base.model(input_ids=ids, attention_mask=mask).logits
        with attached(fitted):
            answer(given.base, given.template, prompts[:2], fitted)
        after = given.base.model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(before, after)


def test_attached_it_changes_answers_to_edits(fitted, given, edits, prompts):
    by_base = answer(given.base, given.template, prompts[:COUNT])
    with attached(fitted):
        patched = answer(given.base, given.template, prompts[:COUNT], fitted)
    assert patched != by_base


def test_a_batch_gives_what_each_prompt_gives_alone(fitted, given, prompts):
    with attached(fitted):
        together = answer(given.base, given.template, prompts, fitted)
        alone = [answer(given.base, given.template, [prompt], fitted)[0] for prompt in prompts]
        apart = logits_of(fitted, given, prompts) - torch.cat([logits_of(fitted, given, [one]) for one in prompts])
    assert together == alone
    assert apart.abs().max() < 1e-3


def test_padding_on_the_left_or_the_right_is_the_same(fitted, given, prompts):
    with attached(fitted):
        apart = logits_of(fitted, given, prompts) - logits_of(fitted, given, prompts, "right")
    assert apart.abs().max() < 1e-3


def test_decoding_with_a_cache_is_what_a_full_forward_says(fitted, given, prompts):
    with attached(fitted), torch.no_grad():
        for prompt in prompts:
            ids, mask = fitted.encode([prompt])
            out = fitted.generate(ids, mask, do_sample=False, max_new_tokens=6, eos_token_id=799, pad_token_id=799)
            full = fitted.logits((ids, mask), (out, torch.ones_like(out)))
            generated = out[0, ids.shape[1] :]
            assert torch.equal(full[0, ids.shape[1] - 1 : -1].argmax(dim=-1), generated), prompt


def test_beams_are_told_apart(fitted, given, prompts):
    with attached(fitted):
        together = answer(given.base, given.template, prompts, fitted, num_beams=3)
        alone = [answer(given.base, given.template, [prompt], fitted, num_beams=3)[0] for prompt in prompts]
    assert together == alone


def test_saved_and_loaded_it_is_the_same_and_learns_on(fitted, given, edits, prompts):
    state = load(save({name: one.contiguous().clone() for name, one in fitted.state().items()}))
    other = make_method(fitted.name, given, FITS[fitted.name])
    other.load(state)
    try:
        with attached(fitted):
            wanted = logits_of(fitted, given, prompts)
        with attached(other):
            assert torch.equal(logits_of(other, given, prompts), wanted)
        assert other.cost() == fitted.cost()
        third = ready_method(fitted.name, given, FITS[fitted.name])
        third.fit(edits[: COUNT // 2])
        resumed = make_method(fitted.name, given, FITS[fitted.name])
        resumed.load({name: one.clone() for name, one in third.state().items()})
        resumed.fit(edits[COUNT // 2 : COUNT])
        with attached(resumed):
            assert torch.equal(logits_of(resumed, given, prompts), wanted)
    finally:
        other.detach()


def test_it_is_deterministic_and_a_method_fits_attached_as_well_as_not(fitted, given, edits, prompts):
    again = ready_method(fitted.name, given, FITS[fitted.name])
    with attached(again):
        fit_in_two(again, edits)
        found = logits_of(again, given, prompts)
    with attached(fitted):
        assert torch.equal(found, logits_of(fitted, given, prompts))


def test_cost_is_that_of_all_that_is_kept(fitted):
    cost, kept = fitted.cost(), fitted.state()
    assert cost.parameters > 0
    if fitted.name != "scen":  # whose state is a backup, ledger and all
        assert cost.bytes == sum(len(one.numpy().tobytes()) for name, one in kept.items() if name != "random")


def test_logits_are_those_of_the_edited_model(fitted, given, edits, prompts):
    with attached(fitted):
        edited = logits_of(fitted, given, prompts[:COUNT])
    assert not torch.equal(edited, logits_of(fitted, given, prompts[:COUNT]))


def test_examples_end_where_their_texts_do(given, edits):
    pairs = [(edit.prompt, edit.target) for edit in edits[:3]]
    examples = Examples.of(given.template, pairs, given.base.device)
    for row, (prompt, target) in enumerate(pairs):
        ids = given.template.prompt_ids(prompt) + given.template.target_ids(prompt, target)
        assert examples.ids[row][examples.mask[row].bool()].tolist() == ids
        assert examples.labels[row][examples.labels[row] >= 0].tolist() == given.template.target_ids(prompt, target)
