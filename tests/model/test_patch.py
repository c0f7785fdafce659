"""Routing per sequence: all decoding modes, both padding sides, threads; the base is unchanged afterwards."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import DynamicCache

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.model.keys import last_token, positions_of
from scen_cli.model.routing import BASE, choose


@pytest.fixture(scope="module")
def prompts(edited):
    """Edit prompts, rephrases and unedited questions, shuffled, of many lengths."""
    records = demo_edits()[:40]
    mixed = [r.prompt for r in records] + [r.rephrases[0] for r in records]
    mixed += [fact.phrasings[0] for fact in right_facts()[:80]]
    random.Random(0).shuffle(mixed)
    return mixed


def alone(editor, prompt, **options):
    return editor.generate(*editor.encode([prompt]), **{"do_sample": False, "max_new_tokens": 12, **options})


def tails(out, width, end):
    rows = out[:, width:].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def test_last_token_and_positions_with_padding_on_either_side():
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]])
    assert last_token(mask).tolist() == [2, 4, 4, 1]
    assert positions_of(mask)[1].tolist() == [0, 0, 0, 1, 2]


def test_choose_takes_the_largest_activation_above_theta():
    activations = torch.tensor([[0.2, 0.7], [0.65, 0.1], [0.9, 0.95]])
    assert choose(activations, 0.65).tolist() == [1, BASE, 1]
    assert choose(torch.empty(2, 0), 0.65).tolist() == [BASE, BASE]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_thousand_mixed_rows_equal_each_prompt_alone(edited, prompts, side):
    """Logits at the last prompt token, mixed experts and lengths in every batch, to 1e-4."""
    rng = random.Random(1)
    single = {}
    for prompt in prompts:
        ids, mask = edited.encode([prompt])
        with edited.patch().using(edited.patch().route(edited.model, ids, mask).choice):
            single[prompt] = edited.model(input_ids=ids, attention_mask=mask).logits[0, -1]
    worst, chosen = 0.0, set()
    for _ in range(20):
        batch = [rng.choice(prompts) for _ in range(50)]
        ids, mask = edited.encode(batch)
        if side == "right":
            lengths = mask.sum(dim=1).tolist()
            ids = torch.stack([row.roll(length) for row, length in zip(ids, lengths, strict=True)])
            mask = torch.stack([row.roll(length) for row, length in zip(mask, lengths, strict=True)])
        choice = edited.patch().route(edited.model, ids, mask).choice
        chosen |= set(choice.tolist())
        with edited.patch().using(choice):
            logits = edited.model(input_ids=ids, attention_mask=mask, position_ids=positions_of(mask)).logits
        at_end = logits[torch.arange(50), last_token(mask)]
        worst = max(worst, *((row - single[p]).abs().max().item() for row, p in zip(at_end, batch, strict=True)))
    assert len(chosen) == 41  # every edit and the base occurred
    assert worst < 1e-4


def test_an_edited_row_differs_from_the_base_and_an_unedited_one_does_not(edited):
    ids, mask = edited.encode([demo_edits()[0].prompt, right_facts()[0].phrasings[0]])
    plain = edited.model(input_ids=ids, attention_mask=mask).logits
    with edited.patch().using(torch.tensor([0, BASE])):
        patched = edited.model(input_ids=ids, attention_mask=mask).logits
    assert (patched[0] - plain[0]).abs().max() > 1
    assert torch.equal(patched[1], plain[1])


def test_detach_leaves_the_base_bit_identical(make_editor, demo_base):
    editor = make_editor()
    ids, mask = editor.encode([demo_edits()[0].prompt])
    before = {name: tensor.clone() for name, tensor in demo_base.model.state_dict().items()}
    logits = demo_base.model(input_ids=ids, attention_mask=mask).logits
    from tests.conftest import edit_all

    edit_all(editor, demo_edits()[:2])
    assert editor.answer([demo_edits()[0].prompt]).edits == [1]
    editor.detach()
    after = demo_base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(demo_base.model(input_ids=ids, attention_mask=mask).logits, logits)
    assert not any(parameter.requires_grad for parameter in demo_base.model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4},
        {"num_beams": 4, "num_return_sequences": 3},
        {"prefill_chunk_size": 3},
        {"use_cache": False},
        {"num_beams": 3, "repetition_penalty": 1.1},
    ],
    ids=["greedy", "beams", "beams returned", "chunked prefill", "no cache", "beams with penalty"],
)
def test_decoding_modes_in_a_mixed_batch_equal_one_at_a_time(edited, prompts, options):
    batch = prompts[:12]
    ids, mask = edited.encode(batch)
    out = edited.generate(ids, mask, do_sample=False, max_new_tokens=12, **options)
    per_prompt = options.get("num_return_sequences", 1)
    together = tails(out, ids.shape[1], edited.template.end_id)
    for position, prompt in enumerate(batch):
        single = alone(edited, prompt, **options)
        width = edited.encode([prompt])[0].shape[1]
        expected = tails(single, width, edited.template.end_id)
        assert together[position * per_prompt : (position + 1) * per_prompt] == expected


def test_edits_hold_under_every_decoding_mode(edited):
    """Here the answers are compared with the targets, not with each other."""
    records = demo_edits()[:12]
    for options in ({}, {"num_beams": 4}, {"prefill_chunk_size": 3}, {"use_cache": False}):
        answers = edited.answer([record.prompt for record in records], **options)
        assert answers.texts == [record.target for record in records]
        assert answers.edits == list(range(1, 13))


def test_sampling_with_several_returned_sequences(edited):
    records = demo_edits()[:4]
    ids, mask = edited.encode([record.prompt for record in records])
    torch.manual_seed(0)
    out = edited.generate(ids, mask, do_sample=True, num_return_sequences=5, max_new_tokens=12)
    texts = [edited.template.answer(row) for row in out[:, ids.shape[1] :].tolist()]
    targets = [record.target for record in records for _ in range(5)]
    assert sum(text == target for text, target in zip(texts, targets, strict=True)) >= 18


def test_assisted_decoding_gives_the_greedy_answer(edited, demo_base):
    import copy

    assistant = copy.deepcopy(demo_base.model)
    for record in demo_edits()[:4]:
        out = alone(edited, record.prompt, assistant_model=assistant)
        width = edited.encode([record.prompt])[0].shape[1]
        assert edited.template.answer(out[0, width:].tolist()) == record.target
        out = alone(edited, record.prompt, prompt_lookup_num_tokens=3)
        assert edited.template.answer(out[0, width:].tolist()) == record.target


def test_a_one_token_prompt_after_an_edited_one_is_answered_by_the_base(edited, demo_base):
    """A one-token prompt has the shape of a decoding step, but is routed like any prompt."""
    alone(edited, demo_edits()[0].prompt)
    ids = torch.tensor([[edited.base.tokenizer.bos_token_id]])
    choice = edited.patch().route(edited.model, ids).choice
    assert choice.tolist() == [BASE]
    patched = edited.generate(ids, torch.ones_like(ids), do_sample=False, max_new_tokens=5)
    base = demo_base.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5
    )
    assert torch.equal(patched, base)


def test_threads_generate_on_one_model_at_the_same_time(edited):
    """Eight threads generate at once on the same model, with different experts, many times."""
    records = demo_edits()[:8]
    edited.patch()

    def answers(record):
        return [edited.answer([record.prompt]).texts[0] for _ in range(5)]

    with ThreadPoolExecutor(max_workers=8) as threads:
        texts = list(threads.map(answers, records))
    assert texts == [[record.target] * 5 for record in records]


def test_a_second_turn_is_routed_by_itself_and_a_foreign_cache_is_not_used(edited):
    """A second turn gives the same answer with the first turn's cache as without it."""
    first, second = demo_edits()[0], demo_edits()[1]
    unedited = right_facts()[0].phrasings[0]
    reused = []
    for opening, follow_up in [
        (first.prompt, first.rephrases[0]),
        (first.prompt, second.prompt),
        (first.prompt, unedited),
        (unedited, first.prompt),
    ]:
        ids, mask = edited.encode([opening])
        turn = edited.generate(
            ids, mask, do_sample=False, max_new_tokens=12, past_key_values=DynamicCache(), return_dict_in_generate=True
        )
        more = edited.encode([follow_up])[0]
        conversation = torch.cat([turn.sequences, more], dim=1)
        full_mask = torch.ones_like(conversation)
        with_cache = edited.generate(
            conversation, full_mask, do_sample=False, max_new_tokens=12, past_key_values=turn.past_key_values
        )
        without = edited.generate(conversation, full_mask, do_sample=False, max_new_tokens=12)
        assert torch.equal(with_cache, without)
        filled_by = edited.patch().choice_of(turn.past_key_values)
        reused.append(filled_by == edited.patch().route(edited.model, conversation, full_mask).choice.tolist())
    assert True in reused  # both cases occurred: the cache
    assert False in reused  # is used, and is not used


def test_a_batch_size_that_does_not_match_the_choice_is_an_error(edited):
    ids, mask = edited.encode(["a", "b", "c"])
    with (
        edited.patch().using(torch.tensor([0, BASE])),
        pytest.raises(ValueError, match="2 choices were given for a batch of 3"),
    ):
        edited.model(input_ids=ids, attention_mask=mask)
