"""SERAC: what is in an edit's scope is answered by a counterfactual model, all else by the base."""

from dataclasses import replace

import pytest
import torch

from scen_cli.baselines.catalogue import ready_method
from scen_cli.baselines.generate import answer
from scen_cli.baselines.method import attached
from scen_cli.errors import UsageError
from scen_cli.model.template import SecondTurn, make_template
from tests.baselines.fits import FITS


@pytest.fixture(scope="module")
def serac(given):
    method = ready_method("serac", given, FITS["serac"])
    method.fit(given.development)
    return method


def in_scope(serac, prompts):
    with attached(serac):
        return serac.in_front(*serac.encode(prompts))


def test_out_of_scope_the_base_answers_to_the_bit(serac, given):
    prompts = [given.development[0].prompt, *(prompt for prompt, _answer in given.unedited[:12])]
    out = [row for row in range(len(prompts)) if row not in in_scope(serac, prompts)]
    assert 10 <= len(out) < len(prompts)
    encoded = serac.encode(prompts)
    options = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": given.template.end_id}
    with torch.no_grad():
        by_base, words = serac.logits(encoded, encoded), serac.generate(*encoded, **options)
        with attached(serac):
            now, said = serac.logits(encoded, encoded), serac.generate(*encoded, **options)
    width = min(words.shape[1], said.shape[1])
    assert torch.equal(now[out], by_base[out])
    assert torch.equal(said[out, :width], words[out, :width])
    assert not torch.equal(now[0], by_base[0])


def test_in_scope_the_counterfactual_model_answers_behind_the_edit(serac, given):
    edit = given.development[1]
    for prompt in (edit.prompt, edit.rephrases[0]):
        behind = given.template.prompt_ids(SecondTurn(edit.prompt, edit.target, prompt))
        ((front, skip, tokens),) = in_scope(serac, [prompt]).values()
        assert front + tokens[skip:] == behind
        out = serac.counterfactual.generate(
            input_ids=torch.tensor([behind]), attention_mask=torch.ones(1, len(behind)), do_sample=False,
            max_new_tokens=12, eos_token_id=given.template.end_id, pad_token_id=0,
        )  # fmt: skip
        with attached(serac):
            said = answer(given.base, given.template, [prompt], serac, max_new_tokens=12)
        assert said == [given.template.answer(out[0, len(behind) :].tolist())]


def test_the_classifier_tells_rephrases_from_other_prompts(serac, given):
    rephrases = [edit.rephrases[0] for edit in given.development]
    assert len(in_scope(serac, rephrases)) >= 0.9 * len(rephrases)
    others = [prompt for prompt, _answer in given.unedited[:200]]
    assert len(in_scope(serac, others)) <= 0.05 * len(others)


@pytest.mark.parametrize("form", ["[INST]{prompt}[/INST]", "none"])
def test_an_edit_is_put_in_front_as_an_earlier_turn(given, edits, form):
    template = make_template(given.base.tokenizer, given.base.model, form)
    method = ready_method("serac", replace(given, template=template), FITS["serac"])
    front, skip = method._front(edits[0].prompt, edits[0].target)
    for edit in edits[:5]:
        turn = SecondTurn(edits[0].prompt, edits[0].target, edit.prompt)
        assert front + template.prompt_ids(edit.prompt)[skip:] == template.prompt_ids(turn)


def test_both_are_trained_once_and_the_base_keeps_its_weights(serac, given):
    again = ready_method("serac", given, FITS["serac"])
    assert again.counterfactual is serac.counterfactual
    own, base = (dict(one.named_parameters()) for one in (serac.counterfactual, given.base.model))
    assert all((own[name] is base[name]) == (name not in serac.trained) for name in base)
    last = ready_method("serac", given, {**FITS["serac"], "steps": 1, "classifier_steps": 1, "layers": 1})
    assert {name.split(".")[2] for name in last.trained} == {"3"}


def test_a_prompt_edited_again_has_one_entry(given, edits):
    method = ready_method("serac", given, FITS["serac"])
    method.fit(edits[:3])
    method.fit([edits[0].model_copy(update={"target": "Riga"})])
    assert len(method.edits) == len(method.vectors) == 3
    assert (edits[0].prompt, "Riga") in method.edits


def test_it_cannot_be_without_development_edits(given):
    with pytest.raises(UsageError, match="development"):
        ready_method("serac", replace(given, development=(), kept={}), FITS["serac"])
