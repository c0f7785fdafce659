"""Answering while others change the project, with little memory, and with odd prompts and tokenizers."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.demo.facts import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.editing.patched_model import ProjectPatch
from scen_cli.errors import UsageError
from scen_cli.model.base import DEMO, load_base
from scen_cli.model.patch import Patch
from scen_cli.project.project import Project
from tests.conftest import edit_all, take_back


def test_a_revert_between_routing_and_generating_hands_nobody_anothers_expert(make_editor, monkeypatch):
    """Another process reverts edit 1 just after the prompts were routed: rows of W_merge move up."""
    editor = make_editor()
    records = demo_edits()[:6]
    edit_all(editor, records)
    other, route = Project(editor.project.folder), Patch.route

    def route_then_lose_edit_1(self, *arguments):
        decided = route(self, *arguments)
        if other.find(1).state == "active":
            take_back(other, 1)
        return decided

    monkeypatch.setattr(Patch, "route", route_then_lose_edit_1)
    answers = editor.answer([record.prompt for record in records])
    assert answers.texts == [record.target for record in records]
    assert answers.edits == [1, 2, 3, 4, 5, 6]
    again = editor.answer([record.prompt for record in records])
    assert again.edits == [None, 2, 3, 4, 5, 6]
    with pytest.raises(UsageError, match="edit 1 is not active"):
        editor.generate(*editor.encode([records[0].prompt]), edits=[1])


def test_sequences_under_way_keep_a_patch_that_is_detached(make_editor):
    editor = make_editor()
    edit_all(editor, demo_edits()[:1])
    ids, mask = editor.encode([demo_edits()[0].prompt])
    hooks = len(editor.edited.down_proj._forward_hooks)  # other tests' projects may be on this base
    patch = editor.patch()
    with patch.using(patch.rows_of([1])):
        before = editor.model(input_ids=ids, attention_mask=mask).logits
        editor.detach()
        assert torch.equal(editor.model(input_ids=ids, attention_mask=mask).logits, before)
    assert not torch.equal(editor.model(input_ids=ids, attention_mask=mask).logits, before)
    assert len(editor.edited.down_proj._forward_hooks) == hooks


def test_an_answer_keeps_its_edits_while_another_thread_meets_a_changed_ledger(make_editor, monkeypatch):
    """Between routing and generating, another thread answers on the ledger as it has become."""
    editor = make_editor()
    records = demo_edits()[:3]
    edit_all(editor, records)
    other, rows_of = Project(editor.project.folder), ProjectPatch.rows_of

    def meanwhile(self, edits):
        if other.find(3).state == "active":
            take_back(other, 3)
            with ThreadPoolExecutor(1) as thread:
                assert thread.submit(editor.answer, [records[2].prompt]).result().edits == [None]
        return rows_of(self, edits)

    monkeypatch.setattr(ProjectPatch, "rows_of", meanwhile)
    assert editor.answer([records[0].prompt]).texts == [records[0].target]


def test_steady_blocks_of_two_threads_end_each_by_itself(make_editor):
    editor = make_editor()
    edit_all(editor, demo_edits()[:2])
    first, second = editor.snapshot(), copy_context()
    first.__enter__()
    block = second.run(editor.snapshot)
    second.run(block.__enter__)
    first.__exit__(None, None, None)
    second.run(block.__exit__, None, None, None)
    take_back(editor.project, 1)
    assert editor.answer([demo_edits()[0].prompt]).edits == [None]


def test_editing_in_one_thread_and_answering_in_another(make_editor):
    editor = make_editor()
    records = demo_edits()
    edit_all(editor, records[:4])
    prompts, targets = [r.prompt for r in records[:4]], [r.target for r in records[:4]]
    with ThreadPoolExecutor(1) as thread:
        editing = thread.submit(edit_all, editor, records[4:12])
        given = [editor.answer(prompts).texts]
        while not editing.done():
            given.append(editor.answer(prompts).texts)
        assert [row.state for row in editing.result()] == ["active"] * 8
    assert all(texts == targets for texts in given)
    assert editor.answer([r.prompt for r in records[:12]]).texts == [r.target for r in records[:12]]


def test_choices_that_do_not_fit_their_rows_are_refused(edited):
    prompts = [record.prompt for record in demo_edits()[:4]]
    with pytest.raises(ValueError, match="4 rows need 4 choices"):
        edited.generate(*edited.encode(prompts), edits=[2, 3])
    with pytest.raises(UsageError, match="4 prompts need 4 edits"):
        edited.answer(prompts, edits=[2])
    with pytest.raises(UsageError, match="there is no prompt"):
        edited.encode([])


def test_penalties_and_sampling_that_a_checkpoint_ships_are_not_the_answers(tmp_path):
    shutil.copytree(DEMO, tmp_path / "base")
    shipped = {"repetition_penalty": 1.8, "do_sample": True, "temperature": 2.0, "eos_token_id": 2}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(shipped))
    base = load_base(str(tmp_path / "base"), device="cpu")
    editor = Editor(new_project(tmp_path / "p", str(tmp_path / "base"), layer=2, base=base), base=base)
    facts = right_facts()[:100]
    assert editor.answer([fact.phrasings[0] for fact in facts]).texts == [fact.answer for fact in facts]


def test_a_prompt_that_nearly_fills_the_context_gets_what_room_is_left(edited):
    prompt = "Where " * 300
    while not edited.fits(prompt):
        prompt = prompt[:-6]
    assert len(edited.template.prompt_ids(prompt)) > 240
    assert len(edited.answer([prompt]).texts) == 1


def test_each_expert_is_read_once_however_little_memory_there_is(make_editor, monkeypatch):
    monkeypatch.setattr("scen_cli.editing.expert_bank.CACHE_BYTES", 3 * 96 * 768 * 4)
    editor, reads = make_editor(), []
    records = demo_edits()[:10]
    edit_all(editor, records)
    expert = editor.project.expert
    monkeypatch.setattr(editor.project, "expert", lambda edit: (reads.append(edit), expert(edit))[1])
    prompts = [record.prompt for record in records] + [record.rephrases[0] for record in records]
    answers = editor.answer(prompts)
    assert answers.texts[:10] == [record.target for record in records]
    assert editor.patch().full_at_once == 3
    assert len(reads) == len(set(reads))


def test_a_prompt_past_the_context_is_a_users_mistake(edited):
    with pytest.raises(UsageError, match="the base's context is 256"):
        edited.answer(["Where " * 300])


def test_a_pad_token_without_a_row_of_its_own_is_not_used(tmp_path):
    base = load_base("demo", device="cpu")
    base.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert base.tokenizer.pad_token_id == base.model.config.vocab_size
    editor = Editor(new_project(tmp_path / "p", "demo", recipe="key", base=base), base=base)
    records = demo_edits()[:4]
    edit_all(editor, records)
    assert editor.answer([record.prompt for record in records]).texts == [record.target for record in records]


def test_a_damaged_neuron_silences_only_itself(edited):
    from scen_cli.model.patch import BASE, choose

    activations = torch.tensor([[0.9, torch.nan], [torch.nan, 0.1]])
    assert choose(activations, 0.65).tolist() == [0, BASE]
