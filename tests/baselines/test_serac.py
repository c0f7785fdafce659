"""SERAC: a counterfactual model answers prompts in an edit's scope, the base answers the others."""

from dataclasses import replace

import pytest
import torch

from scen_cli.baselines.catalogue import prepared_method
from scen_cli.baselines.context import answer
from scen_cli.baselines.method import attached
from scen_cli.errors import UsageError
from scen_cli.model.template import SecondTurn, make_template
from tests.baselines.fits import FITS


@pytest.fixture(scope="module")
def serac(context):
    method = prepared_method("serac", context, FITS["serac"])
    method.fit(context.development)
    return method


def in_scope(serac, prompts):
    with attached(serac):
        return serac.prepended(*serac.encode(prompts))


def test_out_of_scope_logits_are_the_bases_to_the_bit(serac, context):
    prompts = [context.development[0].prompt, *(prompt for prompt, _answer in context.unedited[:12])]
    out = [row for row in range(len(prompts)) if row not in in_scope(serac, prompts)]
    assert 10 <= len(out) < len(prompts)
    encoded = serac.encode(prompts)
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": context.template.end_id}
    with torch.no_grad():
        base_logits, base_ids = serac.logits(encoded, encoded), serac.generate(*encoded, **options)
        with attached(serac):
            logits, ids = serac.logits(encoded, encoded), serac.generate(*encoded, **options)
    width = min(base_ids.shape[1], ids.shape[1])
    assert torch.equal(logits[out], base_logits[out])
    assert torch.equal(ids[out, :width], base_ids[out, :width])
    assert not torch.equal(logits[0], base_logits[0])


def test_in_scope_the_counterfactual_model_answers_after_the_edit(serac, context):
    edit = context.development[1]
    for prompt in (edit.prompt, edit.rephrases[0]):
        longer = context.template.prompt_ids(SecondTurn(edit.prompt, edit.target, prompt))
        [prepended] = in_scope(serac, [prompt]).values()
        assert prepended.before(prepended.tokens) == longer
        out = serac.counterfactual.generate(
            input_ids=torch.tensor([longer]), attention_mask=torch.ones(1, len(longer)), do_sample=False,
            max_new_tokens=12, eos_token_id=context.template.end_id, pad_token_id=0,
        )  # fmt: skip
        with attached(serac):
            answers = answer(context.base, context.template, [prompt], serac, max_new_tokens=12)
        assert answers == [context.template.answer(out[0, len(longer) :].tolist())]


def test_the_classifier_separates_rephrases_from_other_prompts(serac, context):
    rephrases = [edit.rephrases[0] for edit in context.development]
    assert len(in_scope(serac, rephrases)) >= 0.9 * len(rephrases)
    others = [prompt for prompt, _answer in context.unedited[:200]]
    assert len(in_scope(serac, others)) <= 0.05 * len(others)


@pytest.mark.parametrize("form", ["[INST]{prompt}[/INST]", "none"])
def test_an_edit_is_prepended_as_an_earlier_turn(context, edits, form):
    template = make_template(context.base.tokenizer, context.base.model, form)
    method = prepared_method("serac", replace(context, template=template), FITS["serac"])
    turn, skipped = method._earlier_turn(edits[0].prompt, edits[0].target)
    for edit in edits[:5]:
        prompt = SecondTurn(edits[0].prompt, edits[0].target, edit.prompt)
        assert turn + template.prompt_ids(edit.prompt)[skipped:] == template.prompt_ids(prompt)


def test_both_models_are_trained_once_and_the_base_keeps_its_weights(serac, context):
    again = prepared_method("serac", context, FITS["serac"])
    assert again.counterfactual is serac.counterfactual
    own, base = (dict(model.named_parameters()) for model in (serac.counterfactual, context.base.model))
    assert all((own[name] is base[name]) == (name not in serac.trained) for name in base)
    last = prepared_method("serac", context, {**FITS["serac"], "steps": 1, "classifier_steps": 1, "layers": 1})
    assert {name.split(".")[2] for name in last.trained} == {"3"}


def test_a_prompt_edited_again_has_one_entry(context, edits):
    method = prepared_method("serac", context, FITS["serac"])
    method.fit(edits[:3])
    method.fit([edits[0].model_copy(update={"target": "Riga"})])
    assert len(method.edits) == len(method.vectors) == 3
    assert (edits[0].prompt, "Riga") in method.edits


def test_development_edits_are_required(context):
    with pytest.raises(UsageError, match="development"):
        prepared_method("serac", replace(context, development=(), cache={}), FITS["serac"])
