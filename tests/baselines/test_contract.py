"""The contract of `Method`: the same tests for every method."""

import pytest
import torch
from safetensors.torch import load, save

from scen_cli.baselines.catalogue import METHODS, make_method, prepared_method
from scen_cli.baselines.context import Examples, answer
from scen_cli.baselines.method import attached
from tests.baselines.fits import FITS

COUNT = 6
OTHERS = ["Where was Karl Mameski born?", "Vuroville lies on which river?", "What does Bramenova Brothers make?"]


@pytest.fixture(scope="module", params=list(METHODS))
def fitted(request, context, edits):
    """A method that has fitted six edits in two batches."""
    weights = {name: weight.clone() for name, weight in context.base.model.state_dict().items()}
    method = prepared_method(request.param, context, FITS[request.param])
    fit_in_two(method, edits)
    yield method
    method.detach()
    now = context.base.model.state_dict()
    assert all(torch.equal(now[name], weight) for name, weight in weights.items())


@pytest.fixture(scope="module")
def prompts(edits):
    return [edit.prompt for edit in edits[:COUNT]] + [edit.rephrases[0] for edit in edits[:COUNT]] + OTHERS


def fit_in_two(method, edits):
    method.fit(edits[: COUNT // 2])
    method.fit(edits[COUNT // 2 : COUNT])


def logits_of(method, context, texts, side="left"):
    """Logits at the last three tokens of prompts, each with two more tokens, in one batch."""
    rows = [context.template.prompt_ids(text) if isinstance(text, str) else text for text in texts]

    def padded(rows):
        width = max(map(len, rows))
        pads = [[7] * (width - len(row)) for row in rows]
        both = [pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)]
        zeros = [[0] * len(pad) for pad in pads]
        mask = [z + [1] * len(r) if side == "left" else [1] * len(r) + z for z, r in zip(zeros, rows, strict=True)]
        return torch.tensor(both), torch.tensor(mask)

    longer = [[*row, 300, 301] for row in rows]
    ids, mask = padded(longer)
    with torch.no_grad():
        logits = method.logits(padded(rows), (ids, mask))
    return torch.stack([row[real.bool()][-3:] for row, real in zip(logits, mask, strict=True)])


def test_detach_restores_the_base_to_the_bit(fitted, context, prompts):
    ids, mask = fitted.encode(prompts)
    with torch.no_grad():
        before = context.base.model(input_ids=ids, attention_mask=mask).logits
        with attached(fitted):
            answer(context.base, context.template, prompts[:2], fitted)
        after = context.base.model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(before, after)


def test_attach_changes_answers_to_edits(fitted, context, edits, prompts):
    by_base = answer(context.base, context.template, prompts[:COUNT])
    with attached(fitted):
        patched = answer(context.base, context.template, prompts[:COUNT], fitted)
    assert patched != by_base


def test_a_batch_gives_the_same_answers_as_each_prompt_alone(fitted, context, prompts):
    with attached(fitted):
        together = answer(context.base, context.template, prompts, fitted)
        alone = [answer(context.base, context.template, [prompt], fitted)[0] for prompt in prompts]
        apart = logits_of(fitted, context, prompts) - torch.cat(
            [logits_of(fitted, context, [text]) for text in prompts]
        )
    assert together == alone
    assert apart.abs().max() < 1e-3


def test_left_and_right_padding_give_the_same_logits(fitted, context, prompts):
    with attached(fitted):
        apart = logits_of(fitted, context, prompts) - logits_of(fitted, context, prompts, "right")
    assert apart.abs().max() < 1e-3


def test_decoding_with_a_cache_equals_a_full_forward_pass(fitted, context, prompts):
    with attached(fitted), torch.no_grad():
        for prompt in prompts:
            ids, mask = fitted.encode([prompt])
            out = fitted.generate(ids, mask, do_sample=False, max_new_tokens=6, eos_token_id=799, pad_token_id=799)
            full = fitted.logits((ids, mask), (out, torch.ones_like(out)))
            generated = out[0, ids.shape[1] :]
            assert torch.equal(full[0, ids.shape[1] - 1 : -1].argmax(dim=-1), generated), prompt


def test_beam_search_in_a_batch_equals_each_prompt_alone(fitted, context, prompts):
    with attached(fitted):
        together = answer(context.base, context.template, prompts, fitted, num_beams=3)
        alone = [answer(context.base, context.template, [prompt], fitted, num_beams=3)[0] for prompt in prompts]
    assert together == alone


def test_a_loaded_method_gives_the_same_logits_and_continues_to_learn(fitted, context, edits, prompts):
    state = load(save({name: tensor.contiguous().clone() for name, tensor in fitted.state().items()}))
    other = make_method(fitted.name, context, FITS[fitted.name])
    other.load(state)
    try:
        with attached(fitted):
            wanted = logits_of(fitted, context, prompts)
        with attached(other):
            assert torch.equal(logits_of(other, context, prompts), wanted)
        assert other.cost() == fitted.cost()
        third = prepared_method(fitted.name, context, FITS[fitted.name])
        third.fit(edits[: COUNT // 2])
        resumed = make_method(fitted.name, context, FITS[fitted.name])
        resumed.load({name: tensor.clone() for name, tensor in third.state().items()})
        resumed.fit(edits[COUNT // 2 : COUNT])
        with attached(resumed):
            assert torch.equal(logits_of(resumed, context, prompts), wanted)
    finally:
        other.detach()


def test_fit_is_deterministic_attached_or_not(fitted, context, edits, prompts):
    again = prepared_method(fitted.name, context, FITS[fitted.name])
    with attached(again):
        fit_in_two(again, edits)
        found = logits_of(again, context, prompts)
    with attached(fitted):
        assert torch.equal(found, logits_of(fitted, context, prompts))


def test_cost_is_the_size_of_the_state(fitted):
    cost, state = fitted.cost(), fitted.state()
    assert cost.parameters > 0
    if fitted.name != "scen":  # its state is a backup with the ledger
        assert cost.bytes == sum(tensor.numpy().nbytes for name, tensor in state.items() if name != "random")


def test_logits_are_those_of_the_edited_model(fitted, context, edits, prompts):
    with attached(fitted):
        edited = logits_of(fitted, context, prompts[:COUNT])
    assert not torch.equal(edited, logits_of(fitted, context, prompts[:COUNT]))


def test_examples_hold_whole_texts_and_label_targets_only(context, edits):
    pairs = [(edit.prompt, edit.target) for edit in edits[:3]]
    examples = Examples.of(context.template, pairs, context.base.device)
    for row, (prompt, target) in enumerate(pairs):
        ids = context.template.prompt_ids(prompt) + context.template.target_ids(prompt, target)
        assert examples.ids[row][examples.mask[row].bool()].tolist() == ids
        assert examples.labels[row][examples.labels[row] >= 0].tolist() == context.template.target_ids(prompt, target)
