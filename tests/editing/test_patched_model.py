"""Answers while other processes and threads change the project; unusual prompts, checkpoints and tokenizers."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
import torch

from scen_cli.data.suites import demo_edits
from scen_cli.demo.world import right_facts
from scen_cli.editing.create_project import new_project
from scen_cli.editing.editor import Editor
from scen_cli.editing.project_patch import ProjectPatch
from scen_cli.errors import UsageError
from scen_cli.model.base import load_base
from scen_cli.model.known_bases import DEMO
from scen_cli.model.patch import Patch
from scen_cli.project.project import Project
from tests.conftest import edit_all, revert


def test_a_revert_between_routing_and_generation_changes_no_answer(make_editor, monkeypatch):
    """Another process reverts edit 1 just after the prompts were routed: the rows of W_merge move up."""
    editor = make_editor()
    records = demo_edits()[:6]
    edit_all(editor, records)
    other, route = Project(editor.project.folder), Patch.route

    def route_then_revert_edit_1(self, *arguments):
        choice = route(self, *arguments)
        if other.find(1).state == "active":
            revert(other, 1)
        return choice

    monkeypatch.setattr(Patch, "route", route_then_revert_edit_1)
    answers = editor.answer([record.prompt for record in records])
    assert answers.texts == [record.target for record in records]
    assert answers.edits == [1, 2, 3, 4, 5, 6]
    again = editor.answer([record.prompt for record in records])
    assert again.edits == [None, 2, 3, 4, 5, 6]
    with pytest.raises(UsageError, match="edit 1 is not active"):
        editor.generate(*editor.encode([records[0].prompt]), edits=[1])


def test_a_patch_in_use_stays_attached_until_its_block_ends(make_editor):
    editor = make_editor()
    edit_all(editor, demo_edits()[:1])
    ids, mask = editor.encode([demo_edits()[0].prompt])
    hooks = len(editor.edited.down_proj._forward_hooks)  # projects of other tests may be attached to this base
    patch = editor.patch()
    with patch.using(patch.rows_of([1])):
        before = editor.model(input_ids=ids, attention_mask=mask).logits
        editor.detach()
        assert torch.equal(editor.model(input_ids=ids, attention_mask=mask).logits, before)
    assert not torch.equal(editor.model(input_ids=ids, attention_mask=mask).logits, before)
    assert len(editor.edited.down_proj._forward_hooks) == hooks


def test_an_answer_keeps_its_patch_while_another_thread_uses_a_newer_one(make_editor, monkeypatch):
    """Between routing and generation of the first answer, an edit is reverted and another thread answers."""
    editor = make_editor()
    records = demo_edits()[:3]
    edit_all(editor, records)
    other, rows_of = Project(editor.project.folder), ProjectPatch.rows_of

    def revert_then_rows_of(self, edits):
        if other.find(3).state == "active":
            revert(other, 3)
            with ThreadPoolExecutor(1) as thread:
                assert thread.submit(editor.answer, [records[2].prompt]).result().edits == [None]
        return rows_of(self, edits)

    monkeypatch.setattr(ProjectPatch, "rows_of", revert_then_rows_of)
    assert editor.answer([records[0].prompt]).texts == [records[0].target]


def test_snapshots_of_two_contexts_end_independently(make_editor):
    editor = make_editor()
    edit_all(editor, demo_edits()[:2])
    first, second = editor.snapshot(), copy_context()
    first.__enter__()
    block = second.run(editor.snapshot)
    second.run(block.__enter__)
    first.__exit__(None, None, None)
    second.run(block.__exit__, None, None, None)
    revert(editor.project, 1)
    assert editor.answer([demo_edits()[0].prompt]).edits == [None]


def test_one_thread_edits_while_another_answers(make_editor):
    editor = make_editor()
    records = demo_edits()
    edit_all(editor, records[:4])
    prompts, targets = [r.prompt for r in records[:4]], [r.target for r in records[:4]]
    with ThreadPoolExecutor(1) as thread:
        editing = thread.submit(edit_all, editor, records[4:12])
        answers = [editor.answer(prompts).texts]
        while not editing.done():
            answers.append(editor.answer(prompts).texts)
        assert [row.state for row in editing.result()] == ["active"] * 8
    assert all(texts == targets for texts in answers)
    assert editor.answer([r.prompt for r in records[:12]]).texts == [r.target for r in records[:12]]


def test_a_wrong_number_of_edits_is_refused(edited):
    prompts = [record.prompt for record in demo_edits()[:4]]
    with pytest.raises(ValueError, match="4 rows need 4 choices"):
        edited.generate(*edited.encode(prompts), edits=[2, 3])
    with pytest.raises(UsageError, match="4 prompts need 4 edits"):
        edited.answer(prompts, edits=[2])
    with pytest.raises(UsageError, match="there is no prompt"):
        edited.encode([])


def test_generation_settings_of_a_checkpoint_are_ignored(tmp_path):
    shutil.copytree(DEMO, tmp_path / "base")
    shipped = {"repetition_penalty": 1.8, "do_sample": True, "temperature": 2.0, "eos_token_id": 2}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(shipped))
    base = load_base(str(tmp_path / "base"), device="cpu")
    editor = Editor(new_project(tmp_path / "p", str(tmp_path / "base"), layer=2, base=base), base=base)
    facts = right_facts()[:100]
    assert editor.answer([fact.phrasings[0] for fact in facts]).texts == [fact.answer for fact in facts]


def test_a_prompt_that_nearly_fills_the_context_is_answered_in_the_room_left(edited):
    prompt = "Where " * 300
    while not edited.fits(prompt):
        prompt = prompt[:-6]
    assert len(edited.template.prompt_ids(prompt)) > 240
    assert len(edited.answer([prompt]).texts) == 1


def test_a_prompt_longer_than_the_context_is_a_usage_error(edited):
    with pytest.raises(UsageError, match="the base's context is 256"):
        edited.answer(["Where " * 300])


def test_a_pad_token_beyond_the_embedding_is_not_used(tmp_path):
    base = load_base("demo", device="cpu")
    base.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert base.tokenizer.pad_token_id == base.model.config.vocab_size
    editor = Editor(new_project(tmp_path / "p", "demo", recipe="key", base=base), base=base)
    records = demo_edits()[:4]
    edit_all(editor, records)
    assert editor.answer([record.prompt for record in records]).texts == [record.target for record in records]
