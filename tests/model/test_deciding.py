"""The decision falls inside the first forward, and is the one that a pass of its own would make."""

from __future__ import annotations

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.demo.facts import right_facts
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
def test_a_prompt_is_read_once(edited, prompts, tokens):
    ids, mask = edited.encode(prompts)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    chosen = edited.route(prompts).edits
    assert passes(edited, 0, lambda: edited.generate(ids, mask, **options)) == tokens
    assert passes(edited, 0, lambda: edited.generate(ids, mask, chosen, **options)) == tokens


def test_it_is_the_choice_of_a_pass_of_its_own(edited, prompts):
    ids, mask = edited.encode(prompts)
    patch = edited.patch()
    wanted = patch.route(edited.model, ids, mask).choice
    assert BASE in wanted
    assert len(wanted.unique()) > 10
    for side in ("left", "right"):
        turned, hidden = (ids, mask) if side == "left" else (ids.flip(1), mask.flip(1))
        if side == "right":  # the tokens in order, the padding behind them
            for row in range(len(ids)):
                turned[row, : int(hidden[row].sum())] = ids[row][mask[row].bool()]
        with patch.deciding(edited.model, turned, hidden) as undecided:
            edited.model(input_ids=turned, attention_mask=hidden)
        assert undecided.choice.tolist() == wanted.tolist()


def test_beams_decide_by_their_prompt(edited, prompts):
    ids, mask = edited.encode(prompts[:6])
    wanted = edited.patch().route(edited.model, ids, mask).choice
    out, choice = edited.generate_by(edited.patch(), ids, mask, None, num_beams=3, max_new_tokens=4, do_sample=False)
    assert choice.tolist() == wanted.tolist()
    assert len(out) == 6


def test_a_forward_of_a_piece_or_of_more_than_the_prompt_reads_it_apart(edited, prompts):
    """Prefill in chunks, and assisted decoding, which puts candidates behind the prompt."""
    ids, mask = edited.encode(prompts[:6])
    patch = edited.patch()
    wanted = patch.route(edited.model, ids, mask).choice.tolist()
    for shown, seen in (
        (ids[:, :-3], mask[:, :-3]),
        (torch.cat([ids, ids[:, -2:]], 1), torch.cat([mask, mask[:, -2:]], 1)),
    ):
        with patch.deciding(edited.model, ids, mask) as undecided:
            edited.model(input_ids=shown, attention_mask=seen)
        assert undecided.choice.tolist() == wanted


def test_nothing_is_decided_before_a_forward(edited, prompts):
    ids, mask = edited.encode(prompts[:1])
    with (
        edited.patch().deciding(edited.model, ids, mask) as undecided,
        pytest.raises(RuntimeError, match="nothing is decided"),
    ):
        _ = undecided.choice


@pytest.mark.parametrize("target_module", ["up", "attn"])
def test_experts_before_the_key_are_decided_on_apart(make_editor, prompts, place):
    editor = make_editor("key", target_module=place)
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
    asked = [record.prompt for record in records] + [right_facts()[0].phrasings[0]]
    together = editor.answer(asked)
    assert together.edits == [1, 2, 3, 4, None]
    assert together.texts[:4] == [record.target for record in records]
    assert together.texts == [editor.answer([prompt]).texts[0] for prompt in asked]
    ids, mask = editor.encode(asked)
    out, choice = editor.generate_by(editor.patch(), ids, mask, None, max_new_tokens=8, do_sample=False)
    assert choice.tolist() == [0, 1, 2, 3, BASE]
    assert [editor.template.answer(row) for row in out[:, ids.shape[1] :].tolist()] == together.texts


def test_only_the_low_rank_experts_that_are_called_are_read(make_editor, monkeypatch):
    editor, reads = make_editor("key", expert="low-rank", extra_steps=30), []
    records = demo_edits()[:6]
    edit_all(editor, records)
    expert = editor.project.expert
    monkeypatch.setattr(editor.project, "expert", lambda edit: (reads.append(edit), expert(edit))[1])
    editor.answer([records[1].prompt, records[4].prompt] * 2)
    editor.answer([records[4].prompt])
    assert sorted(reads) == [2, 5]


def test_what_was_never_read_is_never_heard():
    """The stack's memory may hold anything where no expert was read yet; ranks in a batch may differ."""
    ranks = torch.tensor([2, 1, 3])
    a, b = torch.full((6, 4), torch.nan), torch.full((6, 5), torch.nan)
    a[2], b[2], a[3:], b[3:] = 1.0, 2.0, 3.0, 4.0  # experts 1 and 2 are there, expert 0 is not
    found = ExpertStack(a, b, ranks, {}.get).gather(torch.tensor([1, BASE, 2]))
    assert found.a.isfinite().all()
    assert found.b.isfinite().all()
    assert (found.b @ found.a)[:, 0, 0].tolist() == [2.0, 0.0, 36.0]


def test_experts_of_several_ranks_answer_in_one_batch_whichever_was_called_first(make_editor):
    editor = make_editor("key", expert="low-rank", rank="auto", lead=6, expert_steps=4)
    records = demo_edits()[:12]
    edit_all(editor, records)
    assert len(set(editor.project.ledger.active_ranks().values())) > 1
    asked = [record.prompt for record in records[::-1]]
    alone = [editor.answer([prompt]).texts[0] for prompt in asked]
    for start in (0, 3, 6):
        editor.detach()
        assert editor.answer(asked[start : start + 6]).texts == alone[start : start + 6]


def test_experts_first_read_in_inference_mode_are_not_the_last(make_editor):
    editor = make_editor("key", expert="low-rank", extra_steps=30)
    records = demo_edits()[:2]
    edit_all(editor, records)
    with torch.inference_mode():
        assert editor.answer([records[0].prompt]).texts == [records[0].target]
    assert editor.answer([records[1].prompt]).texts == [records[1].target]


def test_an_edit_that_is_given_is_the_one_that_is_told(make_editor):
    editor = make_editor("key", edits_per_expert=2)
    from scen_cli.data.records import SourceLine

    pairs = [(record, SourceLine("test", n)) for n, record in enumerate(demo_edits()[:2])]
    with editor.project.writing():
        editor.edit_together(pairs)
        editor.project.merge()
    assert editor.answer([pairs[1][0].prompt], edits=[2]).edits == [2]


def test_a_rank_that_is_not_the_files_is_damage(make_editor):
    editor = make_editor("key", expert="low-rank", extra_steps=30)
    records = demo_edits()[:2]
    edit_all(editor, records)
    editor.project.ledger.db["edits"].update(1, {"rank": 3})
    editor.detach()
    with pytest.warns(Quarantined, match="edit 1 is damaged and quarantined.* different ranks"):
        answers = editor.answer([records[0].prompt])
    assert (answers.texts, answers.edits) == (editor.answer([records[0].prompt], patched=False).texts, [None])
    assert editor.answer([records[1].prompt]).texts == [records[1].target]
