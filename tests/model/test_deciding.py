"""Routing inside the first forward pass gives the same decision as a separate routing pass."""

from __future__ import annotations

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.errors import Quarantined
from scen_cli.model.expert_stack import ExpertStack
from scen_cli.model.routing import BASE
from tests.conftest import edit_all


@pytest.fixture(scope="module")
def prompts():
    records = demo_edits()[:20]
    return [text for record in records for text in (record.prompt, record.rephrases[0])] + [
        fact.phrasings[0] for fact in right_facts()[:20]
    ]


def passes(editor, layer: int, run) -> int:
    """How often a layer runs."""
    count = []
    handle = editor.edited.layers[layer].register_forward_hook(lambda *_args: count.append(1))
    run()
    handle.remove()
    return len(count)


@pytest.mark.parametrize("tokens", [1, 4])
def test_routing_costs_no_extra_pass(edited, prompts, tokens):
    ids, mask = edited.encode(prompts)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    chosen = edited.route(prompts).edits
    assert passes(edited, 0, lambda: edited.generate(ids, mask, **options)) == tokens
    assert passes(edited, 0, lambda: edited.generate(ids, mask, chosen, **options)) == tokens


def test_deferred_route_equals_a_separate_route(edited, prompts):
    ids, mask = edited.encode(prompts)
    patch = edited.patch()
    expected = patch.route(edited.model, ids, mask).choice
    assert BASE in expected
    assert len(expected.unique()) > 10
    for side in ("left", "right"):
        ids_in_order, mask_in_order = (ids, mask) if side == "left" else (ids.flip(1), mask.flip(1))
        if side == "right":  # tokens first, padding after them
            for row in range(len(ids)):
                ids_in_order[row, : int(mask_in_order[row].sum())] = ids[row][mask[row].bool()]
        with patch.deciding(edited.model, ids_in_order, mask_in_order) as deferred:
            edited.model(input_ids=ids_in_order, attention_mask=mask_in_order)
        assert deferred.choice.tolist() == expected.tolist()


def test_beams_route_by_their_prompt(edited, prompts):
    ids, mask = edited.encode(prompts[:6])
    expected = edited.patch().route(edited.model, ids, mask).choice
    out, choice = edited.generate_with(edited.patch(), ids, mask, None, num_beams=3, max_new_tokens=4, do_sample=False)
    assert choice.tolist() == expected.tolist()
    assert len(out) == 6


def test_a_pass_on_a_chunk_or_on_more_than_the_prompt_routes_separately(edited, prompts):
    """Chunked prefill, and assisted decoding, which appends candidate tokens to the prompt."""
    ids, mask = edited.encode(prompts[:6])
    patch = edited.patch()
    expected = patch.route(edited.model, ids, mask).choice.tolist()
    for shown_ids, shown_mask in (
        (ids[:, :-3], mask[:, :-3]),
        (torch.cat([ids, ids[:, -2:]], 1), torch.cat([mask, mask[:, -2:]], 1)),
    ):
        with patch.deciding(edited.model, ids, mask) as deferred:
            edited.model(input_ids=shown_ids, attention_mask=shown_mask)
        assert deferred.choice.tolist() == expected


def test_the_choice_is_unknown_before_a_forward_pass(edited, prompts):
    ids, mask = edited.encode(prompts[:1])
    with (
        edited.patch().deciding(edited.model, ids, mask) as deferred,
        pytest.raises(RuntimeError, match="nothing is decided"),
    ):
        _ = deferred.choice


@pytest.mark.parametrize("target_module", ["up", "attn"])
def test_experts_below_the_key_are_routed_in_a_separate_pass(make_editor, prompts, target_module):
    editor = make_editor("key", target_module=target_module)
    edit_all(editor, demo_edits()[:3])
    ids, mask = editor.encode(prompts[:4])
    chosen = editor.route(prompts[:4]).edits
    assert chosen[0] == 1
    assert editor.answer(prompts[:4]).edits == chosen
    assert passes(editor, 0, lambda: editor.generate(ids, mask, max_new_tokens=1)) == 2


def test_low_rank_and_full_experts_in_one_batch(make_editor, prompts):
    from scen_cli.editing.compress_experts import compress

    editor = make_editor("key")
    records = demo_edits()[:4]
    edit_all(editor, records[:2])
    with editor.project.writing():
        compress(editor, "auto", lambda _line, _pace: None)
    edit_all(editor, records[2:])
    assert sorted(editor.project.ledger.active_ranks().values())[:2] == [0, 0]
    mixed = [record.prompt for record in records] + [right_facts()[0].phrasings[0]]
    together = editor.answer(mixed)
    assert together.edits == [1, 2, 3, 4, None]
    assert together.texts[:4] == [record.target for record in records]
    assert together.texts == [editor.answer([prompt]).texts[0] for prompt in mixed]
    ids, mask = editor.encode(mixed)
    out, choice = editor.generate_with(editor.patch(), ids, mask, None, max_new_tokens=8, do_sample=False)
    assert choice.tolist() == [0, 1, 2, 3, BASE]
    assert [editor.template.answer(row) for row in out[:, ids.shape[1] :].tolist()] == together.texts


def test_only_routed_low_rank_experts_are_read(make_editor, monkeypatch):
    editor, reads = make_editor("key", expert="low-rank", extra_steps=30), []
    records = demo_edits()[:6]
    edit_all(editor, records)
    expert = editor.project.expert
    monkeypatch.setattr(editor.project, "expert", lambda edit: (reads.append(edit), expert(edit))[1])
    editor.answer([records[1].prompt, records[4].prompt] * 2)
    editor.answer([records[4].prompt])
    assert sorted(reads) == [2, 5]


def test_memory_of_unread_experts_is_never_used():
    """The stack's memory may hold NaN where no expert was read yet; ranks in a batch may differ."""
    ranks = torch.tensor([2, 1, 3])
    a, b = torch.full((6, 4), torch.nan), torch.full((6, 5), torch.nan)
    a[2], b[2], a[3:], b[3:] = 1.0, 2.0, 3.0, 4.0  # experts 1 and 2 are loaded, expert 0 is not
    gathered = ExpertStack(a, b, ranks, {}.get).gather(torch.tensor([1, BASE, 2]))
    assert gathered.a.isfinite().all()
    assert gathered.b.isfinite().all()
    assert (gathered.b @ gathered.a)[:, 0, 0].tolist() == [2.0, 0.0, 36.0]


def test_experts_of_several_ranks_answer_in_one_batch_in_any_loading_order(make_editor):
    editor = make_editor("key", expert="low-rank", rank="auto", logit_margin=6, expert_steps=4)
    records = demo_edits()[:12]
    edit_all(editor, records)
    assert len(set(editor.project.ledger.active_ranks().values())) > 1
    reversed_prompts = [record.prompt for record in records[::-1]]
    alone = [editor.answer([prompt]).texts[0] for prompt in reversed_prompts]
    for start in (0, 3, 6):
        editor.detach()
        assert editor.answer(reversed_prompts[start : start + 6]).texts == alone[start : start + 6]


def test_experts_load_after_others_were_loaded_in_inference_mode(make_editor):
    editor = make_editor("key", expert="low-rank", extra_steps=30)
    records = demo_edits()[:2]
    edit_all(editor, records)
    with torch.inference_mode():
        assert editor.answer([records[0].prompt]).texts == [records[0].target]
    assert editor.answer([records[1].prompt]).texts == [records[1].target]


def test_answers_report_the_edit_that_the_caller_chose(make_editor):
    editor = make_editor("key", edits_per_expert=2)
    from scen_cli.data.records import SourceLine

    pairs = [(record, SourceLine("test", n)) for n, record in enumerate(demo_edits()[:2])]
    with editor.project.writing():
        editor.edit_group(pairs)
        editor.project.merge()
    assert editor.answer([pairs[1][0].prompt], edits=[2]).edits == [2]


def test_a_rank_that_differs_from_the_file_is_damage(make_editor):
    editor = make_editor("key", expert="low-rank", extra_steps=30)
    records = demo_edits()[:2]
    edit_all(editor, records)
    editor.project.ledger.db["edits"].update(1, {"rank": 3})
    editor.detach()
    with pytest.warns(Quarantined, match="edit 1 is damaged and quarantined.* does not have the rank"):
        answers = editor.answer([records[0].prompt])
    assert (answers.texts, answers.edits) == (editor.answer([records[0].prompt], patched=False).texts, [None])
    assert editor.answer([records[1].prompt]).texts == [records[1].target]
